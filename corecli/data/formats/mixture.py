"""A mixture, the JSON file that `inflate` writes, opened as one image set over its parts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corecli.base.documents import read_json
from corecli.base.errors import DataError, about
from corecli.base.files import sniff
from corecli.base.sums import Watch
from corecli.data import imageset
from corecli.data.beside import Beside
from corecli.data.formats.parts.joining import join_class_names, join_rows, join_slots, strings_of
from corecli.data.imageset import ImageSet
from corecli.data.mix import (
    MAX_BYTES,
    Mixture,
    check_mixture,
    choose_rows,
    has_partner,
    is_mixture,
    load_mixture,
)
from corecli.data.pixels import MIXED_HINT, OnBad, digest
from corecli.data.rows import LARGE, REAL, Places, Rows, as_array, at
from corecli.data.strings import JoinedStrings, digest_strings

if TYPE_CHECKING:
    import torch

    from corecli.data.decode import Fit
    from corecli.data.pictures import Picture

ACCEPTS = "a mixture .json"
EXAMPLE = {"mix.json": '{"kind": "mixture", "format": 1, "parts": [{"set": "digits:12:test", "repeat": 2}]}'}
_MAX_DEPTH, _MAX_MIXTURES = 16, 256  # mixtures within one another


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureSet:
    """An ImageSet of rows from several sets: the rows `chosen[i]` of `sets[i]` in turn."""

    rows: Rows
    class_names: tuple[str, ...]
    slots: Places
    segments: tuple[int, ...]
    guard: bool
    sets: tuple[ImageSet, ...]
    chosen: tuple[Places, ...]
    known_fingerprint: str | None = None  # of a large mixture

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
        """A hash of the fingerprints of the parts, the keys and the slots; of a large mixture, of what it says."""
        return self.known_fingerprint or self._fingerprint

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images of the given rows, uint8 [B, 3, H, W]."""
        import torch

        return torch.from_numpy(self.read_array(indices))

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return what `read` does as an array, without torch."""
        part_of, inner = self.locate(np.asarray(indices, dtype=np.int64))
        images = np.empty((len(inner), 3, *self.image_size), dtype=np.uint8)
        for number in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == number)
            part = self.sets[number].read_array(inner[here])
            if part.shape[2:] != self.image_size:
                raise self._mixed_sizes(number)
            images[here] = part
        return images

    def picture(self, row: int) -> Picture:
        """Return one image of any size, to be decoded later."""
        part_of, inner = self.locate(np.array([row]))
        return self.sets[int(part_of[0])].picture(int(inner[0]))

    def fitted(self, fit: Fit) -> MixtureSet:
        """Return the set with images that are resized and cropped to one size when they are read."""
        return replace(self, sets=tuple(part.fitted(fit) for part in self.sets))

    def _mixed_sizes(self, number: int) -> DataError:
        first, other = (self.rows.keys[int(self.first[i])] for i in (0, number))
        (height, width), (other_height, other_width) = self.image_size, self.sets[number].image_size
        reason = f"parts differ in size: {first} is {width} x {height}, {other} is {other_width} x {other_height}"
        return DataError(reason, hint=MIXED_HINT)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (numbers of the parts, rows in the parts) of some rows: int64 [n] each."""
        part_of = np.searchsorted(self.first, indices, side="right") - 1
        inner = np.empty(len(indices), dtype=np.int64)
        for number in np.unique(part_of).tolist():
            here = part_of == number
            inner[here] = at(self.chosen[number], indices[here] - self.first[number])
        return part_of, inner

    @cached_property
    def first(self) -> np.ndarray:
        """The first row of each part, and the number of rows."""
        return np.cumsum([0, *map(len, self.chosen)])

    @cached_property
    def _fingerprint(self) -> str:
        slots = hashlib.sha256(as_array(self.slots).tobytes()).hexdigest()
        first, *others = (part.fingerprint for part in self.sets)
        return digest_strings("\0".join([first, *others]), self.rows.keys, slots, repr(self.segments), repr(self.guard))


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


def verify(path: Path, watch: Watch) -> None:
    """Check every part, and that they join. Errors: as `open_set` and `check_set`."""
    open_set(str(path), image_size=None, on_bad="fail")
    for spec in dict.fromkeys(part.set for part in load_mixture(path).parts):
        imageset.check_set(spec, watch)


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
    if sum(len(image_set.rows) for image_set in sets) <= LARGE:
        return _joined(mixture, sets, path)
    return _large(mixture, sets, path)


def _joined(mixture: Mixture, sets: tuple[ImageSet, ...], path: Path) -> MixtureSet:
    chosen = tuple(choose_rows(s.rows, part, part.set) for s, part in zip(sets, mixture.parts, strict=True))
    class_names = join_class_names(sets)
    rows = join_rows(mixture, sets, chosen, class_names, path)
    with about(path):
        slots, segments = join_slots(mixture, sets, chosen)
    if not len(slots):
        raise DataError("an epoch has no images", where=path, hint="increase a repeat")
    whole = MixtureSet(
        rows=rows,
        class_names=class_names,
        slots=slots,
        segments=segments if mixture.order == "sequential" else (len(slots),),
        guard=mixture.guard,
        sets=sets,
        chosen=chosen,
    )
    return whole if mixture.missing == "self" else _partnered(whole, mixture, path)


def _large(mixture: Mixture, sets: tuple[ImageSet, ...], path: Path) -> MixtureSet:
    """Return a mixture whose columns are joined once and stored beside it, and then memory-mapped."""
    parts = [
        repr(replace(part, set=image_set.fingerprint)) for part, image_set in zip(mixture.parts, sets, strict=True)
    ]
    identity = digest(*parts, mixture.order, repr(mixture.guard), mixture.missing)
    beside = Beside(path, identity)
    arrays = beside.arrays("mixture", lambda: _arrays_of(_joined(mixture, sets, path)))
    chosen = tuple(_unpacked(arrays, f"chosen{number}") for number in range(len(sets)))
    columns = zip(mixture.parts, sets, chosen, strict=True)
    keys, groups = zip(*(strings_of(part, image_set.rows, rows) for part, image_set, rows in columns), strict=True)
    rows = Rows(
        keys=JoinedStrings(keys),
        groups=JoinedStrings(groups),
        labels=arrays["labels"],
        origins=arrays["origins"],
        variants=arrays["variants"],
        beside=beside,
    )
    return MixtureSet(
        rows=rows,
        class_names=join_class_names(sets),
        slots=_unpacked(arrays, "slots"),
        segments=tuple(arrays["segments"].tolist()),
        guard=mixture.guard,
        sets=sets,
        chosen=chosen,
        known_fingerprint=identity,
    )


def _arrays_of(whole: MixtureSet) -> dict[str, np.ndarray]:
    rows = whole.rows
    arrays = {"labels": rows.labels, "origins": rows.origins, "variants": rows.variants}
    for name, places in [("slots", whole.slots), *((f"chosen{i}", rows) for i, rows in enumerate(whole.chosen))]:
        arrays[name] = np.array([places.start, places.stop]) if isinstance(places, range) else places
        arrays[f"{name}.is_range"] = np.array([isinstance(places, range)], dtype=np.uint8)
    return {**arrays, "segments": np.array(whole.segments, dtype=np.int64)}


def _unpacked(arrays: dict[str, np.ndarray], name: str) -> Places:
    return range(*arrays[name].tolist()) if arrays[f"{name}.is_range"][0] else arrays[name]


def _open_part(spec: str, image_size: int | None, on_bad: OnBad, above: _Above) -> ImageSet:
    if imageset.is_named(spec) or not Path(spec).is_file() or not claims(spec):
        return imageset.open_set(spec, image_size=image_size, on_bad=on_bad)
    above.check_part(spec)
    return _open(Path(spec), image_size, on_bad, above)


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
    slots = as_array(whole.slots)
    if lonely[slots].all():
        reason = "no real image has a synthetic partner, so that an epoch has no images"
        raise DataError(reason, where=path, hint="add their synthetic images, or set missing to self")
    new_row = np.cumsum(~lonely) - 1
    shown = ~lonely[slots]
    ends = np.cumsum([0, *whole.segments])
    return replace(
        whole,
        rows=whole.rows.take(kept),
        slots=new_row[slots[shown]],
        segments=tuple(int(shown[a:b].sum()) for a, b in zip(ends[:-1], ends[1:], strict=True)),
        chosen=tuple(
            at(rows, np.flatnonzero(~part))
            for rows, part in zip(whole.chosen, np.split(lonely, whole.first[1:-1]), strict=True)
        ),
    )
