"""Image sets: rows and their pixels, opened from any format by content, and written in the format a name asks for.

Pixels are uint8 `[B, 3, H, W]` RGB. Importing this module loads neither numpy nor a format, and listing the formats
loads none of them: `data/formats/__init__.py` describes what the file of a format declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from corecli.base import registry
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.files import MANIFEST, first_bytes, missing

if TYPE_CHECKING:
    import numpy as np
    import torch

    from corecli.base.sums import Watch
    from corecli.data.decode import Fit
    from corecli.data.encoded import EncodedImage
    from corecli.data.pictures import Picture
    from corecli.data.pixels import OnBad
    from corecli.data.rows import Places, Rows

FORMATS = "data/formats"


class StoredSet(Protocol):
    """What a loader reads: an image set, or the latents of one."""

    @property
    def rows(self) -> Rows:
        """The N images: their keys, groups, labels, origins and variants."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; empty if the set is unlabeled or its classes have numbers only."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first image; `read` refuses other sizes."""
        ...

    @property
    def decodes(self) -> bool:
        """Whether `read` decodes or resizes, so that worker processes are worth their cost."""
        ...

    @property
    def slots(self) -> Places:
        """The row shown in each of the L slots of an epoch: int64 [L], where a mixture repeats rows, or a range."""
        ...

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths of the consecutive ranges of slots that are shown in turn: one, except in a sequential mixture."""
        ...

    @property
    def guard(self) -> bool:
        """Whether a batch may hold at most one member of a group."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the keys and of file sizes or stored hashes; no pixels are read."""
        ...

    @property
    def bad(self) -> tuple[str, ...]:
        """One line for each image that `on_bad="skip"` left out."""
        ...

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images of the given rows, uint8 [B, 3, H, W]. Errors: DataError naming the file."""
        ...

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return what `read` does as an array, without torch."""
        ...


class ImageSet(StoredSet, Protocol):
    """What every format and the mixture offer."""

    @property
    def is_mixed(self) -> bool:
        """Whether images of different sizes were found; then `picture` and `fitted` give the images."""
        ...

    def picture(self, row: int) -> Picture:
        """Return one image of any size, to be decoded later. Errors: DataError naming the file."""
        ...

    def fitted(self, fit: Fit) -> ImageSet:
        """Return the set with images that are resized and cropped to one size when they are read."""
        ...


def open_set(spec: str | Path, *, image_size: int | None = None, on_bad: OnBad = "fail") -> ImageSet:
    """Open an image set: a path, whose format is recognized by content, or a named set such as `digits:16:train`.

    `image_size=N` resizes the shorter side to N and crops the center. `on_bad="skip"` decodes every file once and
    leaves out, and counts, those that fail. Errors: MissingInputError; DataError for an empty set, an incomplete
    directory, duplicate keys, a file that is not an image set, or too many bad images.
    """
    spec = str(Path(spec).parent) if Path(spec).name == MANIFEST else str(spec)
    image_set: ImageSet = _format_of(spec).open_set(spec, image_size=image_size, on_bad=on_bad)
    if not len(image_set.rows):
        raise DataError("the image set is empty", where=spec)
    return image_set


def check_set(spec: str | Path, watch: Watch) -> None:
    """Check everything that an image set records of its content, or decode its images; `watch` counts bytes and hashes.

    Errors: as `open_set`; DataError at the first difference.
    """
    spec = str(Path(spec).parent) if Path(spec).name == MANIFEST else str(spec)
    module = _format_of(spec)
    if hasattr(module, "verify"):
        module.verify(Path(spec), watch)
        return
    from corecli.data.formats.parts.checking import check_images

    check_images(module.open_set(spec, image_size=None, on_bad="fail"), watch)


def is_set(path: Path) -> bool:
    """Whether a format recognizes a path as an image set; that of directories takes any."""
    return next(_claiming(str(path)), None) is not None


def record_of(path: Path) -> dict[str, Any]:
    """Return the record in a set of how it was made; {} without one."""
    return _record(path) or {}


def write_set(
    path: Path,
    rows: Rows,
    chunks: Iterable[torch.Tensor | np.ndarray],
    *,
    class_names: tuple[str, ...],
    header: dict[str, Any],
    format: str | None = None,
) -> None:
    """Write images in `format`, by default the one whose suffix `path` has, else as a directory of PNG files.

    chunks: uint8 [n, 3, H, W], streamed in the order of `rows`. header: JSON provenance to keep. The target appears
    complete or not at all. Errors: UsageError for an unknown format, DataError, CannotCreateError, StorageError.
    """
    module = _writer(path, format)
    module.write(Path(path), rows, chunks, class_names=class_names, header=header)


def write_encoded(
    path: Path,
    rows: Rows,
    images: Iterable[EncodedImage],
    *,
    class_names: tuple[str, ...],
    header: dict[str, Any],
    format: str | None = None,
) -> None:
    """Write image files, which may differ in size, as they are. Otherwise as `write_set`.

    Errors: as `write_set`; UsageError for a format that stores pixels of one size.
    """
    module = _writer(path, format)
    if not hasattr(module, "write_encoded"):
        reason = f"{format or format_by_name(path)} stores images of one size"
        raise UsageError(reason, hint="give --image-size N, or write .safetensors, .tar or a directory")
    module.write_encoded(Path(path), rows, images, class_names=class_names, header=header)


def check_keys(path: Path, rows: Rows, *, format: str | None = None) -> None:
    """Check, before any image is made, that `write_set` can store these keys. Errors: as `write_set`."""
    if check := getattr(_writer(path, format), "check_keys", None):
        check(rows, path)


def is_written(path: Path, identity: dict[str, Any], *, force: bool) -> bool:
    """Whether `path` holds a complete set made with the same `identity`, and every image of it.

    Errors: as `target.is_finished`; DataError if files were removed or added.
    """
    from corecli.base.target import is_finished

    if not is_finished(path, identity, force=force, read_record=_record):
        return False
    open_set(path)
    return True


def writable_formats() -> tuple[str, ...]:
    """Return the names of the formats that can be written."""
    return tuple(_suffixes().values())


def shard_formats() -> tuple[str, ...]:
    """Return the names of the formats that store a set in one file, so that a shard can have this format."""
    return tuple(name for suffix, name in _suffixes().items() if suffix)


def suffix_of(name: str) -> str:
    """Return the suffix of a writable format's files, "" where a set is a directory."""
    return registry.constants(FORMATS, name)["SUFFIX"]


def format_by_name(path: Path) -> str:
    """Return the writable format whose suffix a name ends in; `directory` for any other name."""
    suffixes = _suffixes()
    return suffixes.get(Path(path).suffix.lower(), suffixes[""])


def is_named(spec: str) -> bool:
    """Whether a set is one that has a name, such as `digits:16`, and not a path."""
    name, colon, _ = spec.partition(":")
    return bool(colon) and name in registry.choices(FORMATS) and "NAMED" in registry.constants(FORMATS, name)


def _declared(constant: str) -> dict[str, Any]:
    """Return the value of a constant in the file of each format that has it, by the format's name."""
    found = {name: registry.constants(FORMATS, name) for name in registry.choices(FORMATS)}
    return {name: constants[constant] for name, constants in found.items() if constant in constants}


def _suffixes() -> dict[str, str]:
    return {suffix: name for name, suffix in _declared("SUFFIX").items()}


def _writer(path: Path, format: str | None) -> ModuleType:
    name = format or format_by_name(path)
    if name not in writable_formats():
        raise unknown_name("writable format", name, writable_formats())
    return registry.load(FORMATS, name)


def _format_of(spec: str) -> ModuleType:
    if is_named(spec):
        return registry.load(FORMATS, spec.partition(":")[0])
    if not Path(spec).exists():
        hint = f"named sets are {', '.join(_declared('NAMED').values())}" if ":" in spec else None
        raise missing(spec, "file or directory", hint)
    module = next(_claiming(spec), None)
    if module is None:
        raise _not_a_set(spec)
    return module


def _claiming(spec: str) -> Iterator[ModuleType]:
    """Return the formats that recognize a path as theirs, those of the lowest PLACE first."""
    accepted, place = _declared("ACCEPTS"), _declared("PLACE")
    for name in sorted(accepted, key=lambda name: (place.get(name, 0), name)):
        module = registry.load(FORMATS, name)
        if module.claims(spec):
            yield module


def _not_a_set(spec: str) -> DataError:
    if first_bytes(spec).startswith(b"\x1f\x8b"):
        reason = "the file is compressed, so single images cannot be read"
        return DataError(reason, where=spec, hint="unpack it with gunzip or tar")
    accepted = ", ".join(_declared("ACCEPTS").values())
    return DataError("not an image set", where=spec, hint=f"expected {accepted}; or the file is truncated")


def _record(path: Path) -> dict[str, Any] | None:
    """Return the record in a set of how it was made; None for a format that records nothing."""
    module = next(_claiming(str(path)), None)
    return module.made_with(path) if module is not None and hasattr(module, "made_with") else None
