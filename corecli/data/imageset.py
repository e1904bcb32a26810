"""An image set: rows and the pixels behind them, opened from any format by content.

Pixels travel as uint8 `[B, 3, H, W]` RGB tensors. Nothing here imports torch until pixels are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from corecli.base import registry
from corecli.base.errors import DataError, unknown_name
from corecli.base.files import missing
from corecli.data.pixels import OnBad
from corecli.data.rows import Rows

if TYPE_CHECKING:
    import torch


FORMATS = "data/formats"
MANIFEST = "manifest.json"


class ImageSet(Protocol):
    """What every format and the mixture offer."""

    @property
    def rows(self) -> Rows:
        """The images, N of them."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label; empty when unlabeled or when only numbers are known."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image; where files are decoded, the first one's, and `read` refuses others."""
        ...

    @property
    def decodes(self) -> bool:
        """True when `read` decodes or resizes, so that worker processes pay."""
        ...

    @property
    def slots(self) -> np.ndarray:
        """int64 [L]: the row of every slot of one epoch; a mixture repeats rows here."""
        ...

    @property
    def segments(self) -> tuple[int, ...]:
        """Lengths of consecutive ranges of slots shown one after another; one range except in sequential mixtures."""
        ...

    @property
    def guard(self) -> bool:
        """True: a batch may hold at most one member of a group."""
        ...

    @property
    def fingerprint(self) -> str:
        """A cheap identity of the content: equal for equal keys and file sizes or hashes; no pixels are read."""
        ...

    @property
    def bad(self) -> tuple[str, ...]:
        """One line for each image left out by `on_bad="skip"`."""
        ...

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], without torch. Errors: DataError naming the file."""
        ...

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """The images of the given rows, uint8 [B, 3, H, W]. Errors: DataError naming the file."""
        ...


def open_set(spec: str | Path, *, image_size: int | None = None, on_bad: OnBad = "fail") -> ImageSet:
    """Open an image set: a path, judged by its content, or a named set such as `digits:16:train`.

    `image_size=N` resizes the shorter side to N and crops the center. `on_bad="skip"` decodes every file once and
    leaves out, and counts, those that fail. Errors: MissingInputError; DataError for an empty set, an incomplete
    directory, duplicate keys, a file that is no image set, or too many bad images.
    """
    spec = _without_manifest(str(spec))
    module = _format_of(spec)
    image_set: ImageSet = module.open_set(spec, image_size=image_size, on_bad=on_bad)
    if not len(image_set.rows):
        raise DataError("an empty image set", where=spec)
    return image_set


def write_set(
    path: Path,
    rows: Rows,
    chunks: Iterable[torch.Tensor | np.ndarray],
    *,
    class_names: tuple[str, ...],
    header: dict[str, Any],
    format: str | None = None,
) -> None:
    """Write images in the format the name asks for: `.safetensors`, `.npz`, `.tar`, else a directory of PNG files.

    chunks: uint8 [n, 3, H, W] tensors or arrays in the order of `rows`, streamed. header: JSON provenance to keep.
    `format` overrides the name, e.g. "tar" for a directory of shards. The target appears complete or not at all.
    """
    name = format or format_by_name(path)
    if name not in writable_formats():
        raise unknown_name("writable format", name, writable_formats())
    module = registry.load(FORMATS, name)
    module.write(Path(path), rows, chunks, class_names=class_names, header=header)


def writable_formats() -> tuple[str, ...]:
    """Names of the formats that can be written."""
    return tuple(name for name in registry.choices(FORMATS) if hasattr(registry.load(FORMATS, name), "write"))


def format_by_name(path: Path) -> str:
    """The writable format whose `SUFFIX` the name ends in; `directory` for any other name."""
    for name in writable_formats():
        if Path(path).suffix.lower() == registry.load(FORMATS, name).SUFFIX != "":
            return name
    return "directory"


def is_named(spec: str) -> bool:
    """True for `digits:...` and other sets that are not paths."""
    name, colon, _ = spec.partition(":")
    return bool(colon) and name in registry.choices(FORMATS)


def _without_manifest(spec: str) -> str:
    return str(Path(spec).parent) if Path(spec).name == MANIFEST else spec


def _format_of(spec: str) -> ModuleType:
    if is_named(spec):
        return registry.load(FORMATS, spec.partition(":")[0])
    if not Path(spec).exists():
        hint = (
            "named sets are digits:[size][:split], torchvision:NAME:split and captioned:FILE.csv:FOLDER"
            if ":" in spec
            else None
        )
        raise missing(spec, "file or directory", hint)
    for name in registry.choices(FORMATS):
        module = registry.load(FORMATS, name)
        if module.claims(spec):
            return module
    raise _not_a_set(spec)


def _not_a_set(spec: str) -> DataError:
    with open(spec, "rb") as file:
        head = file.read(2)
    if head == b"\x1f\x8b":
        return DataError("compressed, so single images cannot be read", where=spec, hint="unpack it with gunzip or tar")
    hint = "expected a directory, tar shards, .safetensors, .npz or a mixture .json; or the file is truncated"
    return DataError("not an image set", where=spec, hint=hint)
