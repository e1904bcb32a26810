"""Image files in a packed set, where they are one tensor of bytes and an index of offsets and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from corecli.base.errors import DataError
from corecli.base.layout import Index
from corecli.data.encoded import EncodedImage
from corecli.data.mapped import MappedArray, map_tensor
from corecli.data.pixels import digest

ENCODED = "encoded"
_OFFSETS, _HEIGHTS, _WIDTHS = "encoded.offsets", "heights", "widths"
_PIECE_BYTES = 1 << 22
_DAMAGED = "the file is damaged; make or copy it again"


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedFiles:
    """Image files by position: file i is `data[offsets[i] : offsets[i + 1]]`, and its image is heights[i] x widths[i].

    The blocks of a file are checked against their hashes when it is first read.
    """

    path: Path
    data: MappedArray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    content: str

    def name(self, position: int) -> str:
        """Return the file of the set and the number of the image."""
        return f"{self.path}: image {position}"

    def fetch(self, position: int) -> bytes:
        """Return the bytes of an image file. Errors: DataError if they are damaged."""
        start, stop = int(self.offsets[position]), int(self.offsets[position + 1])
        if not 0 <= start < stop <= len(self.data):
            raise DataError("its offsets do not fit the file", where=self.name(position), hint=_DAMAGED)
        return self.data.read(start, stop).tobytes()

    def identity(self, positions: Sequence[int]) -> str:
        """Return the fingerprint of the file, and which of its images are used if not all are."""
        return self.content if len(positions) == len(self.heights) else digest(self.content, *map(str, positions))

    def have_one_size(self) -> bool:
        """Whether all images have the same size."""
        return all(int(sides.min()) == int(sides.max()) for sides in (self.heights, self.widths))


def holds_files(index: Index) -> bool:
    """Whether a safetensors file has image files instead of pixels."""
    return ENCODED in index and "images" not in index


def open_files(path: Path, index: Index, columns: Mapping[str, np.ndarray], *, start: int, content: str) -> PackedFiles:
    """Return the image files of a packed set. Errors: DataError if the index does not fit them."""
    data = map_tensor(path, index, ENCODED, start=start)
    found = {name: columns.get(name, np.zeros(0)) for name in (_OFFSETS, _HEIGHTS, _WIDTHS)}
    offsets, heights, widths = found.values()
    num = max(0, len(offsets) - 1)
    fits = (
        heights.shape == widths.shape == (num,)
        and offsets.ndim == 1
        and {c.dtype.kind for c in found.values()} == {"i"}
    )
    if not num or not fits or (data.dtype, len(data.shape)) != (np.uint8, 1):
        reason = f"{ENCODED} needs {_OFFSETS} int64 [N + 1], {_HEIGHTS} int32 [N] and {_WIDTHS} int32 [N]"
        raise DataError(reason, where=path, hint=_DAMAGED)
    if offsets[0] != 0 or offsets[-1] != len(data):
        raise DataError(f"{_OFFSETS} do not fit {ENCODED}", where=path, hint=_DAMAGED)
    return PackedFiles(path=path, data=data, offsets=offsets, heights=heights, widths=widths, content=content)


def spool(images: Iterable[EncodedImage], num: int, file: IO[bytes]) -> dict[str, np.ndarray]:
    """Write `num` image files to a temporary file, one after another; return their columns."""
    lengths, sizes = np.zeros(num + 1, dtype=np.int64), np.zeros((2, num), dtype=np.int32)
    written = 0
    for image in images:
        file.write(image.data)
        sizes[:, written] = image.size
        written += 1
        lengths[written] = len(image.data)
    assert written == num, f"{written} images for {num} rows"
    return {_OFFSETS: np.cumsum(lengths), _HEIGHTS: sizes[0].copy(), _WIDTHS: sizes[1].copy()}


def pieces(file: IO[bytes]) -> Iterator[np.ndarray]:
    """Yield the bytes of a temporary file as arrays of some MiB."""
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        yield np.frombuffer(piece, dtype=np.uint8)
