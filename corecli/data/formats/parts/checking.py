"""Check images that have no hash by decoding them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from corecli.data.decode import decode
from corecli.data.pixels import EncodedPixels

if TYPE_CHECKING:
    from corecli.base.sums import Watch
    from corecli.data.rows import Rows

T = TypeVar("T")
_AT_ONCE = 256  # images in memory


class Readable(Protocol):
    """What a check needs of an image set."""

    @property
    def rows(self) -> Rows:
        """The images."""
        ...

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W]."""
        ...


def check_images(image_set: Readable, watch: Watch) -> None:
    """Read every image of a set; images may differ in size. Warnings of libjpeg are added to the notes of `watch`.

    Errors: DataError naming the first image that cannot be decoded.
    """
    pixels, num = getattr(image_set, "pixels", None), len(image_set.rows)
    if not isinstance(pixels, EncodedPixels):
        for start in range(0, num, _AT_ONCE):
            watch(image_set.read_array(np.arange(start, min(start + _AT_ONCE, num))).nbytes)
        return
    warnings = []
    for num_bytes, warning in _mapped(lambda row: _check_row(pixels, row), num):
        watch(num_bytes)
        warnings += [warning] if warning else []
    if warnings:
        watch.notes.append(f"libjpeg warns of {len(warnings)} of {num} images; {warnings[0]}")


def check_image(data: Any, name: str) -> str | None:
    """Decode an encoded image; return the warning of libjpeg, if there is one. Errors: DataError."""
    decode(data, name=name)
    if not isinstance(data, bytes) or not data.startswith(b"\xff\xd8\xff"):
        return None
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError as error:
        return f"{name}: {error}" if _is_decodable(data) else None
    return None


def _is_decodable(data: bytes) -> bool:
    """Whether simplejpeg supports this kind of JPEG at all."""
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, strict=False)
    except ValueError:
        return False
    return True


def _check_row(pixels: EncodedPixels, row: int) -> tuple[int, str | None]:
    """Return (bytes, warning) of an image. Errors: DataError."""
    position = int(pixels.positions[row])
    data, name = pixels.store.fetch(position), pixels.store.name(position)
    return len(data) if isinstance(data, bytes) else 0, check_image(data, name)


def _mapped(function: Callable[[int], T], num: int) -> Iterator[T]:
    """Yield the results for 0 .. num - 1 in order, from threads that are at most _AT_ONCE ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, num, _AT_ONCE):
            yield from pool.map(function, range(start, min(start + _AT_ONCE, num)))
