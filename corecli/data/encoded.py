"""Encoded images that are copied from one set into another: as they were read, or encoded again."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from corecli.base.errors import UsageError
from corecli.data.decode import encode_png, image_format

if TYPE_CHECKING:
    from corecli.data.pictures import Picture
    from corecli.data.rows import Rows

AS_READ = "as-read"
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}  # of the others, the format in lowercase
_AT_ONCE = 64  # images in memory


@dataclass(frozen=True)
class EncodedImage:
    """An image file, and its (H, W) in pixels when it is upright."""

    data: bytes
    size: tuple[int, int]

    @property
    def extension(self) -> str:
        """The usual ending of the name of such a file, without the dot."""
        found = image_format(self.data)
        return _EXTENSIONS.get(found, found.lower())


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are encoded again: as JPEG of a quality, or losslessly as PNG. Longer sides are shrunk to `max_px`."""

    quality: int | None
    max_px: int | None


def parse_encoding(text: str, max_px: int | None) -> Encoding | None:
    """Return the encoding that `as-read`, `png` or `jpeg:QUALITY` states; None for the first. Errors: UsageError."""
    if text == AS_READ:
        if max_px is not None:
            raise UsageError("--max-px needs images that are encoded again", hint="add --encode jpeg:90")
        return None
    found = re.fullmatch("png|jpeg:([1-9][0-9]?|100)", text)
    if found is None:
        reason = f"--encode {text!r} is none of as-read, png and jpeg:QUALITY"
        raise UsageError(reason, hint="the quality is 1 to 100, as in jpeg:90")
    return Encoding(quality=int(found[1]) if found[1] else None, max_px=max_px)


class Readable(Protocol):
    """What is read of an image set."""

    @property
    def rows(self) -> Rows:
        """The images."""
        ...

    def picture(self, row: int) -> Picture:
        """Return one image of any size."""
        ...


def encoded_images(data: Readable, encoding: Encoding | None) -> Iterator[EncodedImage]:
    """Yield all images of a set in order, as they were read or encoded again. Errors: DataError naming a bad one."""

    def load(row: int) -> EncodedImage:
        return _encoded(data.picture(row), encoding)

    num = len(data.rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, num, _AT_ONCE):
            yield from pool.map(load, range(start, min(start + _AT_ONCE, num)))


def _encoded(picture: Picture, encoding: Encoding | None) -> EncodedImage:
    if encoding is None:
        return EncodedImage(picture.encoded(), picture.size)
    image = Image.fromarray(np.ascontiguousarray(picture.pixels()))
    if encoding.max_px is not None:
        image.thumbnail((encoding.max_px, encoding.max_px), Image.Resampling.BICUBIC, reducing_gap=None)
    size = (image.height, image.width)
    if encoding.quality is None:
        return EncodedImage(encode_png(np.asarray(image).transpose(2, 0, 1)), size)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=encoding.quality)
    return EncodedImage(buffer.getvalue(), size)
