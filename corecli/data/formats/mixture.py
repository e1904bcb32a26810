"""A mixture, the JSON file that `inflate` writes, opened as one image set over its parts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corecli.base.documents import read_json
from corecli.base.errors import DataError, about
from corecli.base.files import sniff
from corecli.data import imageset
from corecli.data.imageset import ImageSet
from corecli.data.mix import (
    MAX_BYTES,
    Mixture,
    Part,
    check_mixture,
    choose_rows,
    has_partner,
    is_mixture,
    load_mixture,
    repeat_slots,
)
from corecli.data.pixels import MIXED_HINT, OnBad, digest
from corecli.data.rows import ORIGINS, REAL, Rows, check_labels, make_rows

if TYPE_CHECKING:
    import torch

    from corecli.data.decode import Fit
    from corecli.data.pictures import Picture

ACCEPTS = "a mixture .json"
EXAMPLE = {"mix.json": '{"kind": "mixture", "format": 1, "parts": [{"set": "digits:12:test", "repeat": 2}]}'}
_MAX_DEPTH, _MAX_MIXTURES = 16, 256  # mixtures within one another
_MAX_SLOTS = 1 << 29  # 4 GiB


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureSet:
    """An ImageSet of rows from several sets; row i is row `inner[i]` of `sets[part_of[i]]`."""

    rows: Rows
    class_names: tuple[str, ...]
    slots: np.ndarray
    segments: tuple[int, ...]
    guard: bool
    sets: tuple[ImageSet, ...]
    part_of: np.ndarray
    inner: np.ndarray

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first image, and of every other one unless `is_mixed`."""
        return self.sets[0].image_size

    @property
    def is_mixed(self) -> bool:
        """Whether images of different sizes were found."""
        return any(part.is_mixed or part.image_size != self.image_size for part in self.sets)

    @property
    def decodes(self) -> bool:
        """Whether any part decodes."""
        return any(part.decodes for part in self.sets)

    @property
    def bad(self) -> tuple[str, ...]:
        """One line for each image left out of a part."""
        return tuple(line for part in self.sets for line in part.bad)

    @property
    def fingerprint(self) -> str:
        """A hash of the fingerprints of the parts, the keys and the slots."""
        shown = [hashlib.sha256(self.slots.tobytes()).hexdigest(), repr(self.segments), repr(self.guard)]
        return digest(*(part.fingerprint for part in self.sets), *self.rows.keys, *shown)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images of the given rows, uint8 [B, 3, H, W]."""
        import torch

        return torch.from_numpy(self.read_array(indices))

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return what `read` does as an array, without torch."""
        indices = np.asarray(indices, dtype=np.int64)
        images = np.empty((len(indices), 3, *self.image_size), dtype=np.uint8)
        for number in np.unique(self.part_of[indices]).tolist():
            here = np.flatnonzero(self.part_of[indices] == number)
            part = self.sets[number].read_array(self.inner[indices[here]])
            if part.shape[2:] != self.image_size:
                raise self._mixed_sizes(number)
            images[here] = part
        return images

    def picture(self, row: int) -> Picture:
        """Return one image of any size, to be decoded later."""
        return self.sets[int(self.part_of[row])].picture(int(self.inner[row]))

    def fitted(self, fit: Fit) -> MixtureSet:
        """Return the set with images that are resized and cropped to one size when they are read."""
        return replace(self, sets=tuple(part.fitted(fit) for part in self.sets))

    def _mixed_sizes(self, number: int) -> DataError:
        first, other = (self.rows.keys[int((self.part_of == i).argmax())] for i in (0, number))
        (height, width), (other_height, other_width) = self.image_size, self.sets[number].image_size
        reason = f"parts differ in size: {first} is {width} x {height}, {other} is {other_width} x {other_height}"
        return DataError(reason, hint=MIXED_HINT)


def claims(spec: str) -> bool:
    """Whether a path is a JSON file with the kind of a mixture."""
    return sniff(Path(spec)) == "json" and is_mixture(read_json(Path(spec), max_bytes=MAX_BYTES))


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> MixtureSet:
    """Open a mixture and its parts.

    Its rows are those of the parts in turn, and its class names are the union of theirs. Errors: DataError for
    keys in two parts (a `prefix` avoids them), different image sizes, missing partners with `missing="fail"`, and a
    mixture that contains itself.
    """
    return _open(Path(spec), image_size, on_bad, _Above())


def open_mixture(mixture: Mixture, *, where: Path, image_size: int | None, on_bad: OnBad) -> MixtureSet:
    """Open the set that a mixture describes before it is written; paths of parts are relative to the working directory.

    Errors: those of `open_set`, naming `where`.
    """
    check_mixture(mixture, where)
    return _assemble(mixture, where, image_size, on_bad, _Above())


def _open(path: Path, image_size: int | None, on_bad: OnBad, above: _Above) -> MixtureSet:
    return _assemble(load_mixture(path), path, image_size, on_bad, above.with_path(path))


class _Above:
    """The mixtures around a part, and the number of parts that are open in all of them."""

    def __init__(self, paths: tuple[Path, ...] = (), count: Iterator[int] | None = None) -> None:
        self._paths, self._count = paths, itertools.count(1) if count is None else count

    def with_path(self, path: Path) -> _Above:
        """Return this with one more mixture."""
        return _Above((*self._paths, path.resolve()), self._count)

    def check_part(self, spec: str) -> None:
        """Errors: DataError for a mixture that contains itself, and for too many parts or levels."""
        if Path(spec).resolve() in self._paths:
            raise DataError("the mixture contains itself", where=spec)
        if len(self._paths) >= _MAX_DEPTH:
            raise DataError(f"mixtures are nested more than {_MAX_DEPTH} deep", where=spec)
        if next(self._count) > _MAX_MIXTURES:
            raise DataError(f"more than {_MAX_MIXTURES} mixtures within one another", where=spec)


def _assemble(mixture: Mixture, path: Path, image_size: int | None, on_bad: OnBad, above: _Above) -> MixtureSet:
    sets = tuple(_open_part(part.set, image_size, on_bad, above) for part in mixture.parts)
    chosen = [choose_rows(s.rows, part, part.set) for s, part in zip(sets, mixture.parts, strict=True)]
    class_names = _join_class_names(sets)
    rows = _join_rows(mixture, sets, chosen, class_names, path)
    with about(path):
        slots, segments = _join_slots(mixture, sets, chosen)
    if not len(slots):
        raise DataError("an epoch has no images", where=path, hint="increase a repeat")
    whole = MixtureSet(
        rows=rows,
        class_names=class_names,
        slots=slots,
        segments=segments if mixture.order == "sequential" else (len(slots),),
        guard=mixture.guard,
        sets=sets,
        part_of=np.repeat(np.arange(len(sets)), [len(c) for c in chosen]),
        inner=np.concatenate(chosen),
    )
    return whole if mixture.missing == "self" else _partnered(whole, mixture, path)


def _open_part(spec: str, image_size: int | None, on_bad: OnBad, above: _Above) -> ImageSet:
    if imageset.is_named(spec) or not Path(spec).is_file() or not claims(spec):
        return imageset.open_set(spec, image_size=image_size, on_bad=on_bad)
    above.check_part(spec)
    return _open(Path(spec), image_size, on_bad, above)


def _join_class_names(sets: tuple[ImageSet, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for image_set in sets for name in image_set.class_names))


def _join_rows(
    mixture: Mixture, sets: tuple[ImageSet, ...], chosen: list[np.ndarray], class_names: tuple[str, ...], path: Path
) -> Rows:
    parts = [
        _rows_of(part, image_set, rows, class_names)
        for part, image_set, rows in zip(mixture.parts, sets, chosen, strict=True)
    ]
    _refuse_collisions(mixture, parts, path)
    rows = make_rows(
        [key for part in parts for key in part.keys],
        groups=[group for part in parts for group in part.groups],
        labels=np.concatenate([part.labels for part in parts]),
        origins=np.concatenate([part.origins for part in parts]),
        variants=np.concatenate([part.variants for part in parts]),
        where=path,
    )
    check_labels(rows, class_names, path)
    return rows


def _rows_of(part: Part, image_set: ImageSet, chosen: np.ndarray, class_names: tuple[str, ...]) -> Rows:
    """Return the rows of a part with the labels of the mixture; without class names labels stay the same."""
    rows = image_set.rows.take(chosen)
    if image_set.class_names:
        number = np.array([*(class_names.index(name) for name in image_set.class_names), -1], dtype=np.int64)
        rows = replace(rows, labels=number[rows.labels])  # label -1 picks the last entry, -1
    if part.origin is not None:
        rows = replace(rows, origins=np.full(len(rows), ORIGINS.index(part.origin), dtype=np.uint8))
    return replace(rows, keys=[f"{part.prefix}/{key}" for key in rows.keys]) if part.prefix else rows


def _refuse_collisions(mixture: Mixture, parts: list[Rows], path: Path) -> None:
    owner: dict[str, str] = {}
    for part, rows in zip(mixture.parts, parts, strict=True):
        for key in rows.keys:
            if key in owner:
                reason = f"the key {key!r} is in both {owner[key]} and {part.set}"
                raise DataError(reason, where=path, hint='give one part a "prefix", or use "repeat" for one set')
        owner.update(dict.fromkeys(rows.keys, part.set))


def _join_slots(
    mixture: Mixture, sets: tuple[ImageSet, ...], chosen: list[np.ndarray]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the slots of all parts in turn, as rows of the mixture, and the number of slots of each part."""
    parts, start, expected = [], 0, 0.0
    for part, image_set, rows in zip(mixture.parts, sets, chosen, strict=True):
        new_row = np.full(len(image_set.rows), -1, dtype=np.int64)
        new_row[rows] = np.arange(start, start + len(rows))
        slots = image_set.slots[new_row[image_set.slots] >= 0]  # a nested mixture repeats rows itself
        expected += len(slots) * part.repeat
        if expected > _MAX_SLOTS:
            reason = f"an epoch has more than {_MAX_SLOTS} images with {part.set} repeated {part.repeat:g} times"
            raise DataError(reason, hint="decrease a repeat")
        parts.append(new_row[repeat_slots(slots, image_set.rows.labels, part)])
        start += len(rows)
    return np.concatenate(parts), tuple(len(slots) for slots in parts)


def _partnered(whole: MixtureSet, mixture: Mixture, path: Path) -> MixtureSet:
    """Return `whole` without real rows that have no synthetic partner. Errors: DataError with `missing="fail"`."""
    lonely = (whole.rows.origins == REAL) & ~has_partner(whole.rows)
    if not lonely.any():
        return whole
    if mixture.missing == "fail":
        first = ", ".join(whole.rows.keys[i] for i in np.flatnonzero(lonely)[:3])
        reason = f"{int(lonely.sum())} real images have no synthetic partner: {first}"
        raise DataError(reason, where=path, hint='make them with sample, or set "missing" to drop or self')
    kept = np.flatnonzero(~lonely)
    if lonely[whole.slots].all():
        reason = "no real image has a synthetic partner, so that an epoch has no images"
        raise DataError(reason, where=path, hint="add their synthetic images, or set missing to self")
    new_row = np.cumsum(~lonely) - 1
    shown = ~lonely[whole.slots]
    ends = np.cumsum([0, *whole.segments])
    return replace(
        whole,
        rows=whole.rows.take(kept),
        slots=new_row[whole.slots[shown]],
        segments=tuple(int(shown[a:b].sum()) for a, b in zip(ends[:-1], ends[1:], strict=True)),
        part_of=whole.part_of[kept],
        inner=whole.inner[kept],
    )
