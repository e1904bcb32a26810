"""The rows of an image set: the key, group, label, origin and variant of every image. Images are joined by key.

The other columns have defaults that follow from the key: `dog/0007@2` is the synthetic variant 2 of `dog/0007`. Pairs
therefore survive copying, moving and `tar`, and formats store a column only if it differs from its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from corecli.base.errors import DataError

REAL, SYNTHETIC = 0, 1
ORIGINS = ("real", "synthetic")

Column = np.ndarray | Sequence[int] | int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """N images in order. `make_rows` builds them, fills in defaults and checks that keys are unique.

    keys: unique; the POSIX path inside the set without its extension.
    groups: a source image or a caption; real and synthetic members of a group are positives of each other.
    labels: int64 [N], -1 unknown. origins: uint8 [N], REAL or SYNTHETIC. variants: int32 [N], 0 for real images.
    similarity: float32 [N], cosine between the features of a synthetic image and those it was made from, if measured.
    """

    keys: list[str]
    groups: list[str]
    labels: np.ndarray
    origins: np.ndarray
    variants: np.ndarray
    similarity: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def group_ids(self) -> np.ndarray:
        """int64 [N]: the groups, numbered by first appearance."""
        number: dict[str, int] = {}
        ids = (number.setdefault(group, len(number)) for group in self.groups)
        return np.fromiter(ids, dtype=np.int64, count=len(self))

    def take(self, indices: np.ndarray) -> Rows:
        """Return the rows at `indices`, in that order."""
        picked = np.asarray(indices, dtype=np.int64)
        return Rows(
            keys=[self.keys[i] for i in picked.tolist()],
            groups=[self.groups[i] for i in picked.tolist()],
            labels=self.labels[picked],
            origins=self.origins[picked],
            variants=self.variants[picked],
            similarity=None if self.similarity is None else self.similarity[picked],
        )


def make_rows(
    keys: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    labels: Column | None = None,
    origins: Column | None = None,
    variants: Column | None = None,
    similarity: np.ndarray | Sequence[float] | None = None,
    where: object = None,
) -> Rows:
    """Return rows for `keys`. Columns that are not given have the defaults of their keys; labels are unknown.

    A single number applies to all rows. Errors: DataError naming `where`, for keys that are duplicate or not UTF-8,
    columns of another length, and values out of range.
    """
    key_list = list(keys)
    _check_keys(key_list, where)
    default_groups, default_origins, default_variants = _defaults(key_list)
    num = len(key_list)
    return Rows(
        keys=key_list,
        groups=default_groups if groups is None else _sized(list(groups), num, "groups", where),
        labels=_integers(-1 if labels is None else labels, num, np.int64, -1, "labels", where),
        origins=_integers(
            default_origins if origins is None else origins, num, np.uint8, 0, "origins", where, SYNTHETIC
        ),
        variants=_integers(default_variants if variants is None else variants, num, np.int32, 0, "variants", where),
        similarity=None if similarity is None else _cosines(similarity, num, where),
    )


def group_of(key: str) -> str:
    """Return the default group of a key: `dog/0007` for `dog/0007@2`, the key itself for any other."""
    return _split(key)[0]


def variant_key(group: str, variant: int) -> str:
    """Return the key of a synthetic variant of `group`; this is the inverse of `group_of`."""
    return f"{group}@{variant}"


def label_by_folder(
    keys: Sequence[str], class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (labels int64 [N], class_names) with labels from the first folder of each key.

    The label is -1 for a key without a folder, or whose folder is not in `class_names`. The default class names are the
    folders, sorted.
    """
    folders = [folder if slash else None for folder, slash, _ in (key.partition("/") for key in keys)]
    if class_names is None:
        class_names = sorted({folder for folder in folders if folder is not None})
    number: dict[str | None, int] = {name: i for i, name in enumerate(class_names)}
    labels = np.fromiter((number.get(folder, -1) for folder in folders), dtype=np.int64, count=len(folders))
    return labels, tuple(class_names)


def numbered_keys(labels: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """Return keys for images that have only a class: `class/0007`, numbered within each class in order."""
    width = max(4, len(str(len(labels))))
    counts: dict[int, int] = {}
    keys = []
    for label in labels:
        count = counts[label] = counts.get(label, -1) + 1
        name = class_names[label].replace("/", "_") + "/" if label >= 0 else ""
        keys.append(f"{name}{count:0{width}d}")
    return keys


def check_labels(rows: Rows, class_names: Sequence[str], where: object) -> None:
    """Check that every label has a class name if the set has class names. Errors: DataError."""
    if class_names and len(rows) and int(rows.labels.max()) >= len(class_names):
        raise DataError(f"label {int(rows.labels.max())}, but only {len(class_names)} class names", where=where)


def _split(key: str) -> tuple[str, int | None]:
    group, at, digits = key.rpartition("@")
    if at and group and digits.isascii() and digits.isdigit() and len(digits) < 10:
        return group, int(digits)
    return key, None


def _defaults(keys: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    groups, origins = keys, np.zeros(len(keys), dtype=np.uint8)
    variants = np.zeros(len(keys), dtype=np.int32)
    marked = [i for i, key in enumerate(keys) if "@" in key]
    if marked:
        groups = list(keys)
    for i in marked:
        groups[i], variant = _split(keys[i])
        if variant is not None:
            origins[i], variants[i] = SYNTHETIC, variant
    return groups, origins, variants


def _check_keys(keys: list[str], where: object) -> None:
    try:
        "".join(keys).encode()
    except UnicodeEncodeError as error:
        bad = next(key for key in keys if not key.isprintable())
        raise DataError(f"the name {bad!r} is not UTF-8", where=where, hint="rename the file") from error
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise DataError(f"duplicate key {key!r}", where=where, hint="every image needs a key of its own")
        seen.add(key)


def _sized(column: list[str], num: int, name: str, where: object) -> list[str]:
    if len(column) != num:
        raise DataError(f"{len(column)} {name} for {num} images", where=where)
    return column


def _cosines(value: np.ndarray | Sequence[float], num: int, where: object) -> np.ndarray:
    column = np.asarray(value, dtype=np.float32)
    if column.shape != (num,) or not np.isfinite(column).all():
        raise DataError(f"similarity is not one finite number for each of {num} images", where=where)
    return column


def _integers(
    value: Column,
    num: int,
    dtype: type[np.integer],
    low: int,
    name: str,
    where: object,
    high: int | None = None,
) -> np.ndarray:
    column = np.asarray(value)
    if column.ndim == 0:
        column = np.full(num, value)
    if column.shape != (num,):
        raise DataError(f"the column of {name} has shape {list(column.shape)} for {num} images", where=where)
    if num and column.dtype.kind not in "iu":
        raise DataError(f"{name} must be whole numbers, and are {column.dtype}", where=where)
    high = int(np.iinfo(dtype).max) if high is None else high
    if num and not (low <= int(column.min()) and int(column.max()) <= high):
        raise DataError(f"{name} are outside the range {low}..{high}", where=where)
    return column.astype(dtype)
