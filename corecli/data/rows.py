"""The rows of an image set: the key, group, label, origin and variant of every image. Images are joined by key.

The other columns have defaults that follow from the key: `dog/0007@2` is the synthetic variant 2 of `dog/0007`. Pairs
therefore survive copying, moving and `tar`, and formats store a column only if it differs from its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

import numpy as np

from corecli.base.errors import DataError
from corecli.data import joins
from corecli.data.beside import Beside
from corecli.data.mapped import MappedColumn
from corecli.data.strings import PackedStrings, Strings, concatenated, pack

REAL, SYNTHETIC = 0, 1
ORIGINS = ("real", "synthetic")
LARGE = 1 << 21  # rows: epochs and columns of larger sets are never arrays in memory

Column = np.ndarray | Sequence[int] | int
Places = np.ndarray | range  # row numbers; a range if they are consecutive


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """N images in order. `make_rows` builds them, fills in defaults and checks that keys are unique.

    keys: unique; the POSIX path inside the set without its extension.
    groups: a source image or a caption; real and synthetic members of a group are positives of each other.
    labels: int64 [N], -1 unknown. origins: uint8 [N], REAL or SYNTHETIC. variants: int32 [N], 0 for real images.
    similarity: float32 [N], cosine between the features of a synthetic image and those it was made from, if measured.
    num_groups: if known. beside: where arrays of a large set that take long to compute are stored.

    All columns may be memory-mapped.
    """

    keys: Strings
    groups: Strings
    labels: np.ndarray
    origins: np.ndarray
    variants: np.ndarray
    similarity: np.ndarray | None = None
    num_groups: int | None = None
    beside: Beside | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def are_alone(self) -> bool:
        """Whether every image is known to be the only one of its group."""
        return self.num_groups == len(self) or self.groups is self.keys

    @cached_property
    def group_ids(self) -> np.ndarray:
        """int64 [N]: the groups, numbered by first appearance."""
        if self.are_alone or (self.num_groups is None and self.groups == self.keys):
            return np.arange(len(self), dtype=np.int64)
        return self.stored("group-ids", lambda: {"ids": joins.number(self.groups)})["ids"]

    def groups_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the numbers of the groups of some rows: int64 [n]."""
        return np.asarray(indices, dtype=np.int64) if self.are_alone else self.group_ids[indices]

    def stored(self, name: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Return arrays that `build` makes of all rows; for a large set they are made once and memory-mapped."""
        if self.beside is None or len(self) <= LARGE:
            return build()
        return self.beside.arrays(name, build)

    def take(self, indices: np.ndarray) -> Rows:
        """Return the rows at `indices`, in that order."""
        picked = np.asarray(indices, dtype=np.int64)
        keys = self.keys.take(picked)
        return Rows(
            keys=keys,
            groups=keys if self.groups is self.keys else self.groups.take(picked),
            labels=self.labels[picked],
            origins=self.origins[picked],
            variants=self.variants[picked],
            similarity=None if self.similarity is None else self.similarity[picked],
        )


def make_rows(
    keys: Iterable[str],
    *,
    groups: Iterable[str] | None = None,
    labels: Column | None = None,
    origins: Column | None = None,
    variants: Column | None = None,
    similarity: np.ndarray | Sequence[float] | None = None,
    where: object = None,
    is_ours: bool = False,
) -> Rows:
    """Return rows for `keys`. Columns that are not given have the defaults of their keys; labels are unknown.

    A single number applies to all rows. is_ours: `make_rows` has checked the columns before they were stored, so keys
    are not checked again, nor the values of a large set. Errors: DataError naming `where`, for keys that are duplicate
    or not UTF-8, columns of another length, and values out of range.
    """
    column = pack(keys, name="keys", where=where)
    if not is_ours:
        check_unique(column, where)
    num = len(column)
    found = column if groups is keys else None if groups is None else pack(groups, name="groups", where=where)
    if found is None or origins is None or variants is None:
        default_groups, default_origins, default_variants = _defaults(column)
        found = default_groups if found is None else found
        origins = default_origins if origins is None else origins
        variants = default_variants if variants is None else variants
    if len(found) != num:
        raise DataError(f"{len(found)} groups for {num} images", where=where)
    checked = not (is_ours and num > LARGE)
    labels = -1 if labels is None else labels
    return Rows(
        keys=column,
        groups=found,
        labels=_integers(labels, num, np.int64, -1, "labels", where, checked=checked),
        origins=_integers(origins, num, np.uint8, 0, "origins", where, high=SYNTHETIC, checked=checked),
        variants=_integers(variants, num, np.int32, 0, "variants", where, checked=checked),
        similarity=None if similarity is None else _cosines(similarity, num, where, checked=checked),
    )


def count_groups(rows: Rows) -> int:
    """Return the number of groups."""
    if rows.num_groups is not None:
        return rows.num_groups
    return len(rows) if rows.are_alone else int(rows.group_ids.max(initial=-1)) + 1


def check_rows(rows: Rows, where: object) -> None:
    """Check everything that `make_rows` checks. Errors: DataError naming `where`."""
    for column in (rows.keys, rows.groups):
        if isinstance(column, PackedStrings):
            column.check()
    values = {name: getattr(rows, name) for name in ("labels", "origins", "variants", "similarity")}
    make_rows(rows.keys, groups=rows.groups, where=where, **values)


def check_unique(keys: Strings, where: object) -> None:
    """Check that all keys are different. Errors: DataError naming one."""
    key = joins.first_duplicate(keys)
    if key is not None:
        raise DataError(f"duplicate key {key!r}", where=where, hint="every image needs a key of its own")


def at(places: Places, positions: np.ndarray) -> np.ndarray:
    """Return the row numbers at some positions: int64 [n]."""
    if isinstance(places, range):
        return places.start + places.step * np.asarray(positions, dtype=np.int64)
    return places[positions]


def as_array(places: Places) -> np.ndarray:
    """Return all row numbers as one array, int64."""
    if isinstance(places, range):
        return np.arange(places.start, places.stop, places.step, dtype=np.int64)
    return np.asarray(places)


def group_of(key: str) -> str:
    """Return the default group of a key: `dog/0007` for `dog/0007@2`, the key itself for any other."""
    return _split(key)[0]


def variant_key(group: str, variant: int) -> str:
    """Return the key of a synthetic variant of `group`; this is the inverse of `group_of`."""
    return f"{group}@{variant}"


def label_by_folder(
    keys: Iterable[str], class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (labels int64 [N], class_names) with labels from the first folder of each key.

    The label is -1 for a key without a folder, or whose folder is not in `class_names`. The default class names are the
    folders, sorted.
    """
    number: dict[str | None, int] = {}
    split = (key.partition("/") for key in keys)
    found = np.fromiter((number.setdefault(f if s else None, len(number)) for f, s, _ in split), dtype=np.int64)
    if class_names is None:
        class_names = sorted(folder for folder in number if folder is not None)
    label_of: dict[str | None, int] = {name: i for i, name in enumerate(class_names)}
    labels = np.array([label_of.get(folder, -1) for folder in number] or [-1], dtype=np.int64)
    return labels[found], tuple(class_names)


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


def _defaults(keys: Strings) -> tuple[Strings, np.ndarray, np.ndarray]:
    """Return the groups, origins and variants that follow from keys."""
    origins, variants = np.zeros(len(keys), dtype=np.uint8), np.zeros(len(keys), dtype=np.int32)
    groups: list[PackedStrings] = []
    is_other, start = False, 0
    for block in keys.blocks():
        rows, lengths, numbers = _marked(block)
        origins[start + rows], variants[start + rows] = SYNTHETIC, numbers
        ends = np.array(block.ends)
        ends[rows] = block.starts[rows] + lengths
        groups.append(block.between(block.starts, ends))
        is_other = is_other or len(rows) > 0
        start += len(block)
    if not is_other:
        return keys, origins, variants
    if not isinstance(keys, PackedStrings):
        return concatenated(groups), origins, variants
    return keys.between(keys.starts, np.concatenate([group.ends for group in groups])), origins, variants


def _marked(keys: PackedStrings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the keys of variants, as `_split` does: return (rows, lengths of their groups, variants)."""
    data = np.frombuffer(keys.joined(), dtype=np.uint8)
    ends = np.cumsum(keys.lengths)
    marks = np.flatnonzero(data == ord("@"))
    rows = np.searchsorted(ends, marks, side="right")
    is_last = np.ones(len(rows), dtype=bool)
    is_last[:-1] = rows[1:] != rows[:-1]
    marks, rows = marks[is_last], rows[is_last]
    lengths, num_digits = marks - (ends - keys.lengths)[rows], ends[rows] - marks - 1
    good = (lengths > 0) & (num_digits > 0) & (num_digits < 10)
    numbers = np.zeros(len(rows), dtype=np.int64)
    for place in range(9):
        inside = place < num_digits
        digits = data[np.minimum(marks + 1 + place, len(data) - 1)].astype(np.int64) - ord("0")
        good &= ~inside | ((digits >= 0) & (digits <= 9))
        numbers = np.where(inside, 10 * numbers + digits, numbers)
    return rows[good], lengths[good], numbers[good]


def _cosines(value: np.ndarray | Sequence[float], num: int, where: object, *, checked: bool) -> np.ndarray:
    if not checked and _is_column(value, num, np.float32):
        return value
    column = np.asarray(value, dtype=np.float32)
    if column.shape != (num,) or not np.isfinite(column).all():
        raise DataError(f"similarity is not one finite number for each of {num} images", where=where)
    return column


def _is_column(value: Column | Sequence[float], num: int, dtype: type[np.generic]) -> TypeGuard[np.ndarray]:
    """Whether a value is a column already; a memory-mapped one is not read."""
    return isinstance(value, np.ndarray | MappedColumn) and value.shape == (num,) and value.dtype == dtype


def _integers(
    value: Column,
    num: int,
    dtype: type[np.integer],
    low: int,
    name: str,
    where: object,
    *,
    high: int | None = None,
    checked: bool = True,
) -> np.ndarray:
    if not checked and _is_column(value, num, dtype):
        return value
    column = np.asarray(value)
    if column.ndim == 0:
        column = np.full(num, value)
    if column.shape != (num,):
        raise DataError(f"the column of {name} has shape {list(column.shape)} for {num} images", where=where)
    if num and column.dtype.kind not in "iu":
        raise DataError(f"{name} must be whole numbers, and are {column.dtype}", where=where)
    high = int(np.iinfo(dtype).max) if high is None else high
    if num and checked and not (low <= int(column.min()) and int(column.max()) <= high):
        raise DataError(f"{name} are outside the range {low}..{high}", where=where)
    return column.astype(dtype, copy=False)
