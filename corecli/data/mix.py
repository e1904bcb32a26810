"""Mixtures: which rows of which sets an epoch shows, how often and in which order.

A mixture is a few lines of JSON without pixels, written by `inflate`. Its parts decide whether the synthetic images of
a round replace those of earlier rounds or are added to them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from corecli.base.documents import check, read_json
from corecli.base.errors import DataError
from corecli.base.files import write_json
from corecli.base.rng import numpy_generator
from corecli.base.schemas import MIXTURE
from corecli.data.groups import group_index
from corecli.data.imageset import ImageSet, is_named
from corecli.data.joins import in_order
from corecli.data.rows import LARGE, ORIGINS, REAL, SYNTHETIC, Places, Rows, as_array

KIND = "mixture"
MAX_BYTES = 1 << 24
_BLOCK = 1 << 18  # rows
Order = Literal["union", "sequential"]
Missing = Literal["fail", "drop", "self"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of one set, each shown `repeat` times per epoch.

    set: a path or a named set. repeat: N in CORE; a fractional part .x shows a seeded, class-balanced .x of the rows
    once more. At most one of these selects a subset: fraction (of each class), per_class (images of each class), first
    (rows in order), share (K/N, the K-th of N disjoint parts of the set). seed: for the subset and the fractional
    repeat. origin: "real" or "synthetic", instead of the origin of the rows.
    prefix: a folder added to the part's keys if two parts have keys in common; groups stay the same, so pairs survive.
    """

    set: str
    repeat: float = 1
    fraction: float | None = None
    per_class: int | None = None
    first: int | None = None
    share: str | None = None
    seed: int = 0
    origin: str | None = None
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parts, and how an epoch shows them.

    order: "union" shuffles all parts together; "sequential" shows one part after another, each shuffled by itself.
    guard: a batch holds at most one member of a group. missing: for a real row without a synthetic one in its group,
    "self" keeps it (it is its own partner), "drop" leaves it out, "fail" raises an error. round: number in a loop.
    identity, config: how the file was made, stored unchanged.
    """

    parts: tuple[Part, ...]
    order: Order = "union"
    guard: bool = False
    missing: Missing = "self"
    round: int | None = None
    identity: dict[str, Any] | None = None
    config: dict[str, Any] | None = None


def save_mixture(path: Path, mixture: Mixture) -> None:
    """Write a mixture. Paths of parts that are relative to the working directory become relative to the file.

    Errors: DataError for an invalid mixture, CannotCreateError, StorageError.
    """
    check_mixture(mixture, path)
    moved = [replace(part, set=_relative(part.set, Path(path).parent)) for part in mixture.parts]
    plain = {**_without_defaults(mixture), "parts": [_without_defaults(part) for part in moved]}
    write_json(Path(path), {"kind": KIND, "format": 1, **plain})


def load_mixture(path: Path) -> Mixture:
    """Read a mixture, with the paths of its parts resolved. Errors: MissingInputError, DataError."""
    found = read_json(path, max_bytes=MAX_BYTES)
    if not is_mixture(found):
        raise DataError("not a mixture", where=path, hint=f'a mixture is a JSON object with "kind": "{KIND}"')
    if found.get("format", 1) != 1:
        raise DataError(f"format {found['format']} is newer than 1", where=path, hint="upgrade corecli to read it")
    values = {name: value for name, value in check(found, MIXTURE, where=path).items() if name not in _HEAD}
    _known(values, Mixture, path)
    parts = values.pop("parts")
    for part in parts:
        _known(part, Part, path)
    mixture = Mixture(parts=tuple(Part(**part) for part in parts), **values)
    check_mixture(mixture, path)
    return replace(mixture, parts=tuple(replace(p, set=_resolved(p.set, Path(path).parent)) for p in mixture.parts))


def is_mixture(value: Any) -> bool:
    """Whether a JSON value is a mixture."""
    return isinstance(value, dict) and value.get("kind") == KIND


def repeat_for_beta(beta: float, *, num_real: int, num_synthetic: int) -> float:
    """Return the repeat N that gives |D| real rows a share `beta` of the epoch: N = beta |S| / ((1 - beta) |D|).

    Errors: DataError unless 0 < beta < 1 and both sets have rows (AdaInf, Sec. 3).
    """
    if not (0 < beta < 1 and num_real > 0 and num_synthetic > 0):
        raise DataError(
            f"no repeat gives a share of {beta} to {num_real} real images beside {num_synthetic} synthetic ones"
        )
    return beta * num_synthetic / ((1 - beta) * num_real)


def choose_rows(rows: Rows, part: Part, where: object) -> Places:
    """Return the row indices of a part, ascending: a range for the first rows or all.

    They depend on keys, labels and seed, not on the order of rows. For one seed a smaller subset is contained in a
    larger one, up to rounding between classes. Errors: DataError if a class has too few images, or if labels are needed
    and missing.
    """
    if part.first is not None:
        if part.first > len(rows):
            raise DataError(f"the set has {len(rows)} images, fewer than first {part.first}", where=where)
        return range(part.first)
    if part.fraction is None and part.per_class is None and part.share is None:
        return range(len(rows))
    by_key = in_order(rows.keys)
    labels = rows.labels[by_key]
    if part.per_class is not None:
        quotas = _per_class(labels, part.per_class, where)
    else:
        quotas = _balanced(labels, _rounded(1 if part.fraction is None else part.fraction, len(rows)))
    chosen = by_key[_draw(labels, quotas, part.seed, "subset")]
    if part.share is not None:  # all rows are dealt out class by class, like cards
        number, of = map(int, part.share.split("/"))
        chosen = chosen[number - 1 :: of]
    if not len(chosen):
        raise DataError("the subset has no images", where=where)
    return np.sort(chosen)


def repeat_slots(slots: Places, labels: np.ndarray, part: Part) -> Places:
    """Repeat `slots` floor(repeat) times, and a seeded, class-balanced fraction of them once more."""
    if part.repeat == 1:
        return slots
    whole, slots = math.floor(part.repeat), as_array(slots)
    extra = _rounded(part.repeat - whole, len(slots))
    again = np.sort(_draw(labels[slots], _balanced(labels[slots], extra), part.seed, "repeat"))
    return np.concatenate([np.tile(slots, whole), slots[again]])


def has_partner(rows: Rows) -> np.ndarray:
    """Return bool [N]: whether the group of a row has a member of the other origin."""
    if rows.are_alone:
        return np.zeros(len(rows), dtype=bool)
    if len(rows) > LARGE:
        return _has_partner_by_block(rows)
    groups = rows.group_ids
    num_groups = int(groups.max(initial=-1)) + 1
    has = [np.bincount(groups[rows.origins == origin], minlength=num_groups) > 0 for origin in (REAL, SYNTHETIC)]
    return np.where(rows.origins == REAL, has[SYNTHETIC][groups], has[REAL][groups])


def _has_partner_by_block(rows: Rows) -> np.ndarray:
    index, found = group_index(rows), np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), _BLOCK):
        here = np.arange(start, min(start + _BLOCK, len(rows)))
        groups = rows.groups_of(here)
        num_synthetic, num_members = index.synthetic(groups)[1], index.range_of(groups)[1]
        found[here] = np.where(rows.origins[here] == REAL, num_synthetic > 0, num_synthetic < num_members)
    return found


def summary(image_set: ImageSet, batch_size: int) -> dict[str, Any]:
    """Summarize an epoch of a set.

    real, synthetic: numbers of slots, N|D| and |S|. beta: share of real slots. partners: numbers of real rows with
    (matched) and without (missing) a synthetic row in their group, and of synthetic rows without a real one (extra).
    collisions_per_batch: expected number of pairs of one group in a batch drawn without replacement; each is a false
    negative of a contrastive loss. per_class: [real, synthetic] slots by class name.
    """
    rows, slots = image_set.rows, as_array(image_set.slots)
    origins = rows.origins[slots]
    num_real = int((origins == REAL).sum())
    partnered, is_real = has_partner(rows), rows.origins == REAL
    return {
        "real": num_real,
        "synthetic": len(slots) - num_real,
        "beta": num_real / len(slots),
        "images": {"real": int(is_real.sum()), "synthetic": int((~is_real).sum())},
        "partners": {
            "matched": int((partnered & is_real).sum()),
            "missing": int((~partnered & is_real).sum()),
            "extra": int((~partnered & ~is_real).sum()),
        },
        "collisions_per_batch": 0.0 if image_set.guard else _collisions(image_set, batch_size),
        "per_class": _slots_per_class(image_set),
    }


def _collisions(image_set: ImageSet, batch_size: int) -> float:
    """Sum, over segments, their share of batches times B(B-1)/2 times P(two drawn slots have the same group)."""
    groups = image_set.rows.groups_of(as_array(image_set.slots))
    expected, start = 0.0, 0
    for length in image_set.segments:
        counts = np.bincount(groups[start : start + length]).astype(np.float64)
        batch = min(batch_size, length)
        same = float((counts * (counts - 1)).sum()) / max(1, length * (length - 1))
        expected += length / len(groups) * batch * (batch - 1) / 2 * same
        start += length
    return expected


def _slots_per_class(image_set: ImageSet) -> dict[str, list[int]]:
    rows, slots = image_set.rows, as_array(image_set.slots)
    pairs, nums = np.unique(rows.labels[slots] * len(ORIGINS) + rows.origins[slots], return_counts=True)
    counts = Counter({divmod(pair, len(ORIGINS)): num for pair, num in zip(pairs.tolist(), nums.tolist(), strict=True)})
    found = sorted({label for label, _ in counts if label >= 0} | set(range(len(image_set.class_names))))
    names = {label: image_set.class_names[label] if image_set.class_names else str(label) for label in found}
    if any(label < 0 for label, _ in counts):
        names[-1] = "unlabeled"
    return {name: [counts[label, REAL], counts[label, SYNTHETIC]] for label, name in names.items()}


def _draw(labels: np.ndarray, quotas: dict[int, int], seed: int, purpose: str) -> np.ndarray:
    """Return positions: for each label the first `quota` of a seeded permutation of its positions."""
    drawn = [
        numpy_generator(seed, purpose, label).permutation(np.flatnonzero(labels == label))[:quota]
        for label, quota in quotas.items()
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *drawn])


def _balanced(labels: np.ndarray, total: int) -> dict[int, int]:
    """Divide `total` among labels in proportion, by largest remainder; ties go to the smaller label."""
    found, counts = np.unique(labels, return_counts=True)
    shares = counts.astype(np.int64) * total
    quotas, remainders = shares // max(1, len(labels)), shares % max(1, len(labels))
    for i in np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]:
        quotas[i] += 1
    return dict(zip(found.tolist(), quotas.tolist(), strict=True))


def _per_class(labels: np.ndarray, quota: int, where: object) -> dict[int, int]:
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    if not len(found):
        raise DataError("per_class needs labels, and the set has none", where=where, hint="use fraction or first")
    if counts.min() < quota:
        label, count = int(found[counts.argmin()]), int(counts.min())
        raise DataError(f"class {label} has {count} images, fewer than {quota}", where=where)
    return dict.fromkeys(found.tolist(), quota)


def _rounded(share: float, of: int) -> int:
    return math.floor(share * of + 0.5)


def check_mixture(mixture: Mixture, where: object) -> None:
    """Check the values of a mixture. Errors: DataError naming the field."""
    if not mixture.parts:
        raise DataError("the mixture has no parts", where=where)
    check({**vars(mixture), "parts": [vars(part) for part in mixture.parts]}, MIXTURE, where=where)
    for part in mixture.parts:
        _check_part(part, where)


def _check_part(part: Part, where: object) -> None:
    if sum(getattr(part, name) is not None for name in _SUBSETS) > 1:
        raise DataError(f"part {part.set} has several subsets", where=where, hint=f"use one of {', '.join(_SUBSETS)}")


_SUBSETS = ("fraction", "per_class", "first", "share")
_HEAD = ("kind", "format")


def _known(values: dict[str, Any], cls: type[Part] | type[Mixture], where: object) -> None:
    names = [f.name for f in fields(cls)]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise DataError(f"unknown key {unknown[0]!r}", where=where, hint=f"the known keys are {', '.join(names)}")


def _without_defaults(value: Part | Mixture) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}


def _relative(spec: str, folder: Path) -> str:
    if is_named(spec) or os.path.isabs(spec):
        return spec
    return Path(os.path.relpath(spec, folder)).as_posix()


def _resolved(spec: str, folder: Path) -> str:
    return spec if is_named(spec) else str(folder / spec)
