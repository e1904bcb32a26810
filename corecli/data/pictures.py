"""Single images of any size, opened without decoding; a JPEG file is decoded at the scale that is needed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image

from corecli.data.decode import MAX_PIXELS, decode, encode_png, header_size, refuse_bomb

_ORIENTATION = 274  # the tag of EXIF
_MAY_ROTATE = (b"Exif\0\0", b"eXIf", b"EXIF", b"http://ns.adobe.com/xap/")  # parts of a file that state an orientation
_TIFF = (b"II", b"MM")  # its own tags state one
_COLORS = ("YCbCr", "Gray")


class Picture(Protocol):
    """One image, upright."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, known without decoding."""
        ...

    @property
    def divisors(self) -> tuple[int, ...]:
        """The divisors of the size at which the image can be decoded; 1 is always one."""
        ...

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Return uint8 [ceil(H / divisor), ceil(W / divisor), 3] RGB. Errors: DataError naming a damaged file."""
        ...

    def encoded(self) -> bytes:
        """Return the image as a file: as it was read, or as PNG if it was read as pixels."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPicture:
    """An image in memory: uint8 [3, H, W]."""

    array: np.ndarray
    divisors: tuple[int, ...] = (1,)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.array.shape[1], self.array.shape[2]

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Return the image at full size."""
        return self.array.transpose(1, 2, 0)

    def encoded(self) -> bytes:
        """Return the image as PNG."""
        return encode_png(self.array)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPicture:
    """An image file of any format; `decode` describes how it is read."""

    data: bytes
    name: object
    divisors: tuple[int, ...] = (1,)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels; a file that may have to be rotated is decoded."""
        if not self.data.startswith(_TIFF) and not _may_rotate(self.data):
            return header_size(self.data, name=self.name)
        return self._decoded.shape[1], self._decoded.shape[2]

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Return the image at full size."""
        return self._decoded.transpose(1, 2, 0)

    def encoded(self) -> bytes:
        """Return the file as it was read."""
        return self.data

    @cached_property
    def _decoded(self) -> np.ndarray:
        return decode(self.data, name=self.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class JpegPicture:
    """A JPEG file in color or gray; it is decoded to the pixels that Pillow gives, but faster."""

    data: bytes
    name: object
    stored_size: tuple[int, int]
    divisors: tuple[int, ...] = (1, 2, 4, 8)  # libjpeg has fast code for these only

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, after the rotation that EXIF states."""
        height, width = self.stored_size
        return (width, height) if self._orientation >= 5 else (height, width)

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Return the image, reduced by the decoder, which uses fewer coefficients of the file."""
        refuse_bomb(self.stored_size, MAX_PIXELS, self.name)
        # The decoder takes the smallest of its scales that gives at least this size; 0 is full size.
        height, width = (0 if divisor == 1 else -(-side // divisor) for side in self.stored_size)
        try:
            image = simplejpeg.decode_jpeg(self.data, min_height=height, min_width=width, min_factor=1)
        except ValueError:  # damaged, at least a little: Pillow decides
            image = Image.fromarray(decode(self.data, name=self.name).transpose(1, 2, 0))
            return np.asarray(image.reduce(divisor))
        return _upright(image, self._orientation)

    def encoded(self) -> bytes:
        """Return the file as it was read."""
        return self.data

    @cached_property
    def _orientation(self) -> int:
        if not _may_rotate(self.data):
            return 1
        found = Image.open(io.BytesIO(self.data), formats=("JPEG",)).getexif().get(_ORIENTATION, 1)
        return found if found in range(1, 9) else 1


def open_picture(data: bytes | Image.Image, *, name: object) -> Picture:
    """Return an image by its encoded bytes or as Pillow has it. Errors: DataError naming a damaged file."""
    if not isinstance(data, bytes):
        return ArrayPicture(array=decode(data, name=name))
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # also for files in CMYK
            return EncodedPicture(data=data, name=name)
        if colors in _COLORS:
            return JpegPicture(data=data, name=name, stored_size=(int(height), int(width)))
    return EncodedPicture(data=data, name=name)


def _may_rotate(data: bytes) -> bool:
    return any(part in data for part in _MAY_ROTATE)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror uint8 [H, W, 3] as the orientation of EXIF, 1 to 8, states."""
    image = image.transpose(1, 0, 2) if orientation >= 5 else image
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return image[rows, columns]
