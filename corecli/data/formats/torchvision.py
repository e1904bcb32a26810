"""`torchvision:NAME[:SPLIT]`: an image-classification set of torchvision.datasets, e.g. `torchvision:CIFAR10:train`.

It is searched for in $TORCHVISION_DATA, ./data and ~/.cache/torchvision, and downloaded only if CORECLI_DOWNLOAD=1.
Opening it imports torch, because torchvision does.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from corecli.base.errors import DataError, MissingInputError, UnavailableError, UsageError, first_line, unknown_name
from corecli.data.pixels import EncodedPixels, OnBad, PlainSet, digest, without_bad
from corecli.data.rows import make_rows, numbered_keys

NAMED = "torchvision:NAME[:SPLIT]"
ROOT_VARIABLE, DOWNLOAD_VARIABLE = "TORCHVISION_DATA", "CORECLI_DOWNLOAD"
_PICKLED = ("LSUN", "LSUNClass")  # the pickles of CIFAR are read only if their MD5 is the published one


@dataclass(frozen=True, kw_only=True)
class Items:
    """Images of a torchvision dataset by position."""

    dataset: Any
    keys: list[str]
    spec: str

    def name(self, position: int) -> str:
        """Return the name of the set and the key."""
        return f"{self.spec} {self.keys[position]}"

    def fetch(self, position: int) -> Image.Image:
        """Return the image. Errors: DataError."""
        try:
            return self.dataset[position][0]
        except Exception as error:  # each dataset reads its own files
            raise DataError(f"cannot be read: {first_line(error)}", where=self.name(position)) from error

    def identity(self, positions: Sequence[int]) -> str:
        """Return a hash of the name of the set."""
        return digest(self.spec)


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open a torchvision set; keys are `class/number within the class`.

    Errors: UsageError for an unknown name or split; MissingInputError naming the places that were searched.
    """
    _, name, split = (*spec.split(":", 2), "", "")[:3]
    dataset = _load(name, split, spec)
    labels, class_names = _labels(dataset)
    keys = numbered_keys(labels.tolist(), class_names)
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    rows = make_rows(keys, labels=labels, where=spec).take(order)
    pixels = EncodedPixels(store=Items(dataset=dataset, keys=keys, spec=spec), positions=order, resize=image_size)
    return without_bad(PlainSet(rows=rows, pixels=pixels, class_names=class_names), pixels, on_bad, spec)


def _load(name: str, split: str, spec: str) -> Any:
    dataset_class = _dataset_class(name)
    chosen = _split_argument(dataset_class, split, spec)
    roots = _roots()
    for root in roots:
        if root.is_dir():
            try:
                return dataset_class(str(root), **chosen)
            except (RuntimeError, FileNotFoundError):
                continue  # raised by torchvision if the data is not there
            except Exception as error:  # of many kinds, for damaged files
                reason = f"torchvision cannot read its files: {first_line(error)}"
                raise DataError(reason, where=f"{spec} in {root}", hint="download them again") from error
    if os.environ.get(DOWNLOAD_VARIABLE) == "1":
        return _download(dataset_class, roots, chosen, spec)
    places = ", ".join(str(root) for root in roots)
    hint = f"set {ROOT_VARIABLE} to its folder, or {DOWNLOAD_VARIABLE}=1 to download it"
    raise MissingInputError(f"not found under {places}", where=spec, hint=hint)


def _download(dataset_class: Any, roots: list[Path], chosen: dict[str, Any], spec: str) -> Any:
    root = roots[0] if os.environ.get(ROOT_VARIABLE) else roots[-1]
    try:
        return dataset_class(str(root), **chosen, download=True)
    except TypeError as error:
        raise MissingInputError("torchvision cannot download this set", where=spec) from error
    except (OSError, RuntimeError) as error:
        raise UnavailableError(f"download failed: {error}", where=spec) from error


def _roots() -> list[Path]:
    given = os.environ.get(ROOT_VARIABLE)
    return [*([Path(given)] if given else []), Path("data"), Path.home() / ".cache" / "torchvision"]


def _dataset_class(name: str) -> Any:
    from torchvision import datasets

    names = [n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))]
    if name not in names:
        raise unknown_name("torchvision dataset", name, names)
    if name in _PICKLED:
        reason = "torchvision reads a pickle in its folder without checking it, which could run code"
        raise DataError(reason, where=f"torchvision:{name}", hint="save its images as files in a directory")
    return getattr(datasets, name)


def _split_argument(dataset_class: Any, split: str, spec: str) -> dict[str, Any]:
    """Return the argument that selects the split: `split="val"` in newer sets, `train=True` in older ones."""
    parameters = inspect.signature(dataset_class.__init__).parameters
    if not split:
        return {}
    for name in ("split", "image_set"):
        if name in parameters:
            return {name: split}
    if "train" in parameters and split in ("train", "test"):
        return {"train": split == "train"}
    choices = "use train or test" if "train" in parameters else "this set has no splits; leave it out"
    raise UsageError(f"no split {split!r}", where=spec, hint=choices)


def _labels(dataset: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return labels and class names if the dataset has them, under any of the names that torchvision uses."""
    found = next((getattr(dataset, n) for n in ("targets", "labels", "_labels") if hasattr(dataset, n)), None)
    if found is None or not all(isinstance(one, int | np.integer) for one in found[:1]):  # VOC's are file names
        return np.full(len(dataset), -1, dtype=np.int64), ()
    labels = np.asarray(found, dtype=np.int64)
    names = getattr(dataset, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
    return labels, tuple(name if isinstance(name, str) else name[0] for name in names)
