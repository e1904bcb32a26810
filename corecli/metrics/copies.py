"""Copy check: whether samples are nearer to real images than real images are to each other.

A generator that memorized its training set has a very small Frechet distance; these numbers reveal it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.survey import Nearest

NEEDS = ("nearest",)
SCORES = {
    "nearest_real": None,
    "real_nearest_real": None,
    "copy_ratio": "higher",
    "copy_fraction": "lower",
    "memorised": "lower",
    "authenticity": "higher",
}
PLACE = 9
DEFAULT_FROM = 1
QUANTILE = 0.01
_MEMORIZED = 1 / 3


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """Distances of samples to their nearest real image, and of real images to their nearest other real image.

    mean_to_real, mean_among_real: the means of the two;
    ratio: mean_to_real / mean_among_real; about 1 for new images, toward 0 for near copies;
    threshold: the 1% quantile of the distances among real images;
    fraction: share of samples at or below the threshold; about 0.01 for new images;
    memorised: share of samples three times as near to one real image as to any other (Yoon et al. 2023, section 2);
    copies of an image that occurs twice in the real set are not detected;
    authenticity: share of samples that are farther from their nearest real image than that image is from its own
    nearest one (Alaa et al. 2022, section 4); above one half for new images, 0 for copies;
    distances, indices: [N], the distance of each sample to its nearest real image and the index of that image.
    """

    mean_to_real: float
    mean_among_real: float
    ratio: float
    threshold: float
    fraction: float
    memorised: float
    authenticity: float
    distances: Tensor
    indices: Tensor


def compute(*, nearest: Nearest) -> dict[str, float]:
    """Return the mean distances and the shares of `CopyCheck`. Errors: as `copy_check`."""
    found = copy_check(nearest)
    return {
        "nearest_real": found.mean_to_real,
        "real_nearest_real": found.mean_among_real,
        "copy_ratio": found.ratio,
        "copy_fraction": found.fraction,
        "memorised": found.memorised,
        "authenticity": found.authenticity,
    }


def copy_check(nearest: Nearest) -> CopyCheck:
    """Compare samples with the real images that they might copy.

    Errors: DataError for fewer than 2 real images, or if each of them has an exact duplicate.
    """
    if len(nearest.among_reference.distances) < 2:
        raise DataError("the copy check needs at least two real images")
    among = nearest.among_reference.distances[:, 0]
    first, second = nearest.to_reference.distances.T
    indices = nearest.to_reference.indices[:, 0]
    if not among.any():
        raise DataError("every real image has an exact duplicate", hint="remove the duplicates first")
    threshold = among.quantile(QUANTILE)
    return CopyCheck(
        mean_to_real=float(first.mean()),
        mean_among_real=float(among.mean()),
        ratio=float(first.mean() / among.mean()),
        threshold=float(threshold),
        fraction=float((first <= threshold).double().mean()),
        memorised=float((first < _MEMORIZED * second).double().mean()),
        authenticity=float((first > among[indices]).double().mean()),
        distances=first,
        indices=indices,
    )
