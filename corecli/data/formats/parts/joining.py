"""The rows and the slots of a mixture, joined from those of its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corecli.base.errors import DataError
from corecli.data.imageset import ImageSet
from corecli.data.joins import all_places, first_duplicate
from corecli.data.mix import Mixture, Part, repeat_slots
from corecli.data.rows import ORIGINS, Places, Rows, as_array, check_labels, make_rows
from corecli.data.strings import JoinedStrings, Strings

_MAX_SLOTS = 1 << 29  # 4 GiB

_Column = tuple[str, Strings, Places]  # of JoinedStrings


def join_class_names(sets: tuple[ImageSet, ...]) -> tuple[str, ...]:
    """Return the class names of all parts, each once."""
    return tuple(dict.fromkeys(name for image_set in sets for name in image_set.class_names))


def join_rows(
    mixture: Mixture, sets: tuple[ImageSet, ...], chosen: tuple[Places, ...], class_names: tuple[str, ...], path: Path
) -> Rows:
    """Return the chosen rows of all parts in turn. Errors: DataError naming a key that two parts have."""
    parts = list(zip(mixture.parts, sets, chosen, strict=True))
    keys, groups = zip(*(strings_of(part, image_set.rows, rows) for part, image_set, rows in parts), strict=True)
    _refuse_collisions(mixture, JoinedStrings(keys), chosen, path)
    labels, origins, variants = (
        np.concatenate(columns)
        for columns in zip(
            *(_numbers_of(part, image_set, as_array(rows), class_names) for part, image_set, rows in parts), strict=True
        )
    )
    rows = make_rows(
        JoinedStrings(keys),
        groups=JoinedStrings(groups),
        labels=labels,
        origins=origins,
        variants=variants,
        where=path,
        is_ours=True,
    )
    check_labels(rows, class_names, path)
    return rows


def strings_of(part: Part, rows: Rows, chosen: Places) -> tuple[_Column, _Column]:
    """Return the keys and the groups of a part."""
    return (f"{part.prefix}/" if part.prefix else "", rows.keys, chosen), ("", rows.groups, chosen)


def _numbers_of(
    part: Part, image_set: ImageSet, chosen: np.ndarray, class_names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels of the mixture, origins and variants of a part; without class names labels stay the same."""
    rows = image_set.rows
    labels, origins, variants = (column[chosen] for column in (rows.labels, rows.origins, rows.variants))
    if image_set.class_names:
        number = np.array([*(class_names.index(name) for name in image_set.class_names), -1], dtype=np.int64)
        labels = number[labels]  # label -1 picks the last entry, -1
    if part.origin is not None:
        origins = np.full(len(chosen), ORIGINS.index(part.origin), dtype=np.uint8)
    return labels, origins, variants


def _refuse_collisions(mixture: Mixture, keys: Strings, chosen: tuple[Places, ...], path: Path) -> None:
    key = first_duplicate(keys)
    if key is None:
        return
    numbers = np.searchsorted(np.cumsum([len(places) for places in chosen]), all_places(key, keys)[:2], side="right")
    first, second = (mixture.parts[number].set for number in numbers)
    reason = f"the key {key!r} is in both {first} and {second}"
    raise DataError(reason, where=path, hint='give one part a "prefix", or use "repeat" for one set')


def join_slots(
    mixture: Mixture, sets: tuple[ImageSet, ...], chosen: tuple[Places, ...]
) -> tuple[Places, tuple[int, ...]]:
    """Return the slots of all parts in turn, as rows of the mixture, and the number of slots of each part."""
    parts, start, expected = list[Places](), 0, 0.0
    for part, image_set, rows in zip(mixture.parts, sets, chosen, strict=True):
        slots = _slots_of(image_set, rows, start)  # a nested mixture repeats rows itself
        expected += len(slots) * part.repeat
        if expected > _MAX_SLOTS:
            reason = f"an epoch has more than {_MAX_SLOTS} images with {part.set} repeated {part.repeat:g} times"
            raise DataError(reason, hint="decrease a repeat")
        parts.append(_repeated(slots, image_set, rows, start, part))
        start += len(rows)
    lengths = tuple(map(len, parts))
    if all(isinstance(slots, range) for slots in parts):  # of all rows of the parts, each once
        return range(start), lengths
    return np.concatenate([as_array(slots) for slots in parts]), lengths


def _slots_of(image_set: ImageSet, chosen: Places, start: int) -> Places:
    """Return the slots of the chosen rows of a set, where the first of them is row `start` of the mixture."""
    if isinstance(image_set.slots, range):
        return range(start, start + len(chosen))
    new_row = np.full(len(image_set.rows), -1, dtype=np.int64)
    new_row[as_array(chosen)] = np.arange(start, start + len(chosen))
    slots = new_row[image_set.slots]
    return slots[slots >= 0]


def _repeated(slots: Places, image_set: ImageSet, chosen: Places, start: int, part: Part) -> Places:
    """Return the slots of a part as often as it is shown; a fraction of them is chosen by label."""
    if part.repeat == 1:
        return slots
    labels = image_set.rows.labels[as_array(chosen)]
    return as_array(repeat_slots(as_array(slots) - start, labels, part)) + start
