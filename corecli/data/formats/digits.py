"""`digits:[SIZE][:SPLIT]`: the 1,797 handwritten digits in scikit-learn, 8 x 8 px; real images without a download.

`digits:16` resizes them to 16 px. `train` and `test` are a fixed, stratified split with every fifth image of a class in
`test`. `half` and `half-test` are another one, with every second image of a class in `half-test`: fewer images to train
on, and more than twice as many to test on.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from corecli.base.errors import UnavailableError, UsageError
from corecli.data.decode import fit_array, square
from corecli.data.pixels import ArrayPixels, OnBad, PlainSet, digest
from corecli.data.rows import make_rows, numbered_keys

NAMED = "digits:[SIZE][:SPLIT]"
EXAMPLE = "digits:12:test"
CLASS_NAMES = tuple("0123456789")
TEST_EVERY = {"train": 5, "test": 5, "half": 2, "half-test": 2}


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open the digits. Errors: UsageError for a malformed name, UnavailableError without scikit-learn."""
    size, split = _parse(spec)
    images, labels = _load()
    if size is not None:
        images = fit_array(images, square(size))
    keys = numbered_keys(labels.tolist(), CLASS_NAMES)
    chosen = [i for i, key in enumerate(keys) if _is_in(split, int(key.rpartition("/")[2]))]
    order = np.array(sorted(chosen, key=keys.__getitem__), dtype=np.int64)
    rows = make_rows([keys[i] for i in order], labels=labels[order], where=spec)
    pixels = ArrayPixels(array=images[order], content=digest(spec), resize=image_size)
    return PlainSet(rows=rows, pixels=pixels, class_names=CLASS_NAMES)


def _is_in(split: str, number: int) -> bool:
    """Whether the image of this number within its class belongs to the split."""
    if not split:
        return True
    every = TEST_EVERY[split]
    return (number % every == every - 1) == split.endswith("test")


def _parse(spec: str) -> tuple[int | None, str]:
    _, size, split, *more = [*spec.split(":"), "", ""]
    size_is_valid = size == "" or (size.isascii() and size.isdigit() and int(size) > 0)
    if not size_is_valid or split not in ("", *TEST_EVERY) or any(more):
        raise UsageError(
            "malformed name of a digits set",
            where=spec,
            hint="write digits:, digits:16, digits:16:train, digits::test or digits:8:half",
        )
    return int(size) if size else None, split


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Return images, uint8 [1797, 3, 8, 8], and labels, int64 [1797]."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UnavailableError("digits: needs scikit-learn", hint="pip install 'corecli[digits]'")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # as load_digits does; importing that takes a second
    gray = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return np.repeat(gray, 3, axis=1), table[:, -1].astype(np.int64)
