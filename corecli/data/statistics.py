"""Statistics files: mean and covariance of the features of a set in an .npz file, so that it is measured only once.

The format is that of pytorch-fid and EDM (`mu`, `sigma`) and of the reference batches of ADM's evaluator (also `mu_s`,
`sigma_s` for sFID, and images in `arr_0`). Our files also name their feature space in plain strings, so that statistics
from different networks or resize protocols are not compared by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.archives import open_zip, read_array
from corecli.base.errors import DataError
from corecli.base.files import atomic_write, missing, sniff

_MOMENTS = ("mu", "sigma", "mu_s", "sigma_s")
_SCALARS = {"feature_space": ("U", "a string"), "fingerprint": ("U", "a string"), "num_images": ("iu", "an integer")}
_LABELS = tuple(_SCALARS)
_ASYMMETRY = 1e-3  # float32 files of some tools are not exactly symmetric


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Mean [D] and covariance [D, D] (divided by n - 1), float64; the spatial pair is for sFID.

    space: feature space with layer and resize, such as `inception/pool/tf1`; fingerprint: hash of the network's
    weights; num_images: number of images behind the mean. All three are None for files of other tools.
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    space: str | None = None
    fingerprint: str | None = None
    num_images: int | None = None


def holds_statistics(path: Path | str) -> bool:
    """Whether a file is an .npz with a mean and a covariance, by its content."""
    if sniff(Path(path)) != "npz":
        return False
    with open_zip(Path(path)) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def read_statistics(path: Path | str) -> Statistics:
    """Read a statistics file written by corecli, pytorch-fid, EDM or ADM; images in it are ignored.

    Errors: MissingInputError; DataError if it is a pickle or its statistics are missing or invalid.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    if not {"mu", "sigma"} <= set(arrays):
        raise DataError("mu and sigma are missing", where=path, hint="is it an image set?")
    mean, covariance = _checked(arrays["mu"], arrays["sigma"], path)
    spatial = (None, None)
    if {"mu_s", "sigma_s"} <= set(arrays):
        spatial = _checked(arrays["mu_s"], arrays["sigma_s"], path)
    space, fingerprint, num_images = (arrays[name].item() if name in arrays else None for name in _LABELS)
    return Statistics(
        mean=mean,
        covariance=covariance,
        spatial_mean=spatial[0],
        spatial_covariance=spatial[1],
        space=space,
        fingerprint=fingerprint,
        num_images=num_images,
    )


def write_statistics(path: Path | str, statistics: Statistics, *, images: np.ndarray | None = None) -> None:
    """Write atomically an .npz that pytorch-fid and EDM can read; equal content gives equal bytes.

    images: uint8 [N, H, W, 3], stored as `arr_0`, which ADM's evaluator requires.
    Errors: StorageError, CannotCreateError.
    """
    arrays: dict[str, Any] = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "mu_s": statistics.spatial_mean,
        "sigma_s": statistics.spatial_covariance,
        "feature_space": statistics.space,
        "fingerprint": statistics.fingerprint,
        "num_images": statistics.num_images,
        "arr_0": images,
    }
    with atomic_write(Path(path)) as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})


def check_same_space(statistics: Statistics, other: Statistics, *, where: object = None) -> None:
    """Check that two statistics are in one feature space, as far as the files say; dimensions are always checked.

    Errors: DataError about `where`.
    """
    sizes = len(statistics.mean), len(other.mean)
    if sizes[0] != sizes[1]:
        raise DataError(f"statistics with {sizes[0]} and {sizes[1]} dimensions cannot be compared", where=where)
    if None not in (statistics.space, other.space) and statistics.space != other.space:
        hint = "measure both with the same extractor, layer and resize"
        raise DataError(
            f"statistics in {statistics.space} and {other.space} cannot be compared", where=where, hint=hint
        )
    prints = statistics.fingerprint, other.fingerprint
    if None not in prints and prints[0] != prints[1]:
        hint = "the extractors have different weights; measure both with the same one"
        short = [str(p)[:12] for p in prints]
        raise DataError(f"statistics of networks {short[0]} and {short[1]} cannot be compared", where=where, hint=hint)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    found = sniff(path)
    if found == "missing":
        raise missing(path)
    if found != "npz":
        raise DataError(
            "not an .npz statistics file", where=path, hint="pickles are not loaded; save mu and sigma with numpy.savez"
        )
    with open_zip(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        arrays = {name: read_array(archive, members[name]) for name in _MOMENTS + _LABELS if name in members}
    for name, array in arrays.items():
        kinds, wanted = ("fiu", "numbers") if name in _MOMENTS else _SCALARS[name]
        if array.dtype.kind not in kinds or (name in _LABELS and array.ndim):
            found = f"{array.dtype} {list(array.shape)}"
            raise DataError(f"{name}: expected {wanted}, found {found}", where=path, hint="create or copy it again")
    return arrays


def _checked(mean: np.ndarray, covariance: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(f"mu {mean.shape} and sigma {covariance.shape} do not match", where=path)
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError("mu or sigma contains NaN or infinity", where=path)
    if not len(mean):
        raise DataError("mu is empty", where=path)
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * np.abs(covariance).max():
        raise DataError("sigma is not symmetric", where=path)
    return mean, (covariance + covariance.T) / 2
