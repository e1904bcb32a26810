"""Decode image files to uint8 RGB pixels. Only this module handles image modes, orientation and size limits."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from corecli.base.errors import CorecliError, DataError

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm"})
MAX_PIXELS = 64_000_000

# Decoders are listed, because some of Pillow's (such as PostScript) run other programs.
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_PNG, _CHUNK, _SUM = b"\x89PNG\r\n\x1a\n", struct.Struct(">I4s"), struct.Struct(">I")
_MASK_MODES = ("1", "L", "P", "I;16", "I;16B", "I")
_BOMB_HINT = "shrink the image, or leave it out with --on-bad skip"
_BAD_HINT = "replace the image, or leave it out with --on-bad skip"

# `decode` has a lower limit than the size at which Pillow warns.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How images are brought to one size: the shorter side is resized to `resize`, and a square of `crop` cut out."""

    crop: int
    resize: int
    interpolation: str = "bicubic"  # or bilinear; both antialiased


def square(size: int) -> Fit:
    """Return the fit that resizes the shorter side to `size` and crops the center."""
    return Fit(crop=size, resize=size)


def decode(
    data: bytes | Image.Image, *, name: object, fits: Sequence[Fit] = (), max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode one image to uint8 [3, H, W] RGB.

    The EXIF orientation is applied and animations give their first frame; `to_rgb` describes the modes. The image is
    then resized and cropped as each of `fits` says. `name` names the image in errors.
    Errors: DataError if the image is truncated, damaged, of unknown kind, or has more than `max_pixels` (checked before
    it is decoded), or if a checksum in a PNG file does not match.
    """
    with _decoding(name):
        image = Image.open(io.BytesIO(data), formats=_DECODERS) if isinstance(data, bytes) else data
        refuse_bomb(image.size, max_pixels, name)
        _check_sums(data)
        image.load()
        mode_is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        ImageOps.exif_transpose(image, in_place=True)
        image = _from_16_bit(image) if mode_is_16_bit else image
        image = to_rgb(image, name=name)
        for fit in fits:
            image = resize_crop(image, fit)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_mask(data: bytes, *, name: object, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image whose pixel values, or palette indices, are class numbers: int32 [H, W].

    Errors: as `decode`; DataError for several channels, and for JPEG, which changes values.
    """
    with _decoding(name):
        image = Image.open(io.BytesIO(data), formats=_DECODERS)
        refuse_bomb(image.size, max_pixels, name)
        if image.format == "JPEG" or image.mode not in _MASK_MODES:
            reason = (
                f"a mask stores a class number in each pixel, and this is a {image.format} file of mode {image.mode}"
            )
            raise DataError(
                reason, where=name, hint="save masks as PNG with one channel of 8 or 16 bits, or with a palette"
            )
        _check_sums(data)
        image.load()
        return np.asarray(image).astype(np.int32)


def to_rgb(image: Image.Image, *, name: object) -> Image.Image:
    """Convert an image of any mode of at most 8 bits to RGB.

    Palette, grayscale, bilevel and CMYK images are converted. Transparent images are composed on white, because
    `convert("RGB")` would show the arbitrary colors that editors leave under transparent pixels.
    Errors: DataError for 32-bit integer and float pixels, whose range is unknown.
    """
    if image.mode in ("I", "F"):
        raise DataError("the range of 32-bit pixels is unknown", where=name, hint="convert the image to 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def header_size(data: bytes, *, name: object, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (H, W) as the header of an image file states it, without rotation. Errors: as `decode`."""
    with _decoding(name):
        width, height = Image.open(io.BytesIO(data), formats=_DECODERS).size
        refuse_bomb((width, height), max_pixels, name)
        return height, width


def image_format(data: bytes) -> str:
    """Return the format of an image file as Pillow names it, such as "JPEG". Errors: DataError if it is no image."""
    with _decoding("an image"):
        return str(Image.open(io.BytesIO(data), formats=_DECODERS).format)


def resize_crop(image: Image.Image, fit: Fit) -> Image.Image:
    """Resize the shorter side of an image and crop the center, as torchvision does on Pillow's images."""
    (width, height), size = image.size, fit.resize
    target = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    if target != image.size:
        image = image.resize(target, Image.Resampling[fit.interpolation.upper()])
    left, top = round((target[0] - fit.crop) / 2), round((target[1] - fit.crop) / 2)
    return image if target == (fit.crop, fit.crop) else image.crop((left, top, left + fit.crop, top + fit.crop))


def fit_array(images: np.ndarray, fit: Fit) -> np.ndarray:
    """Resize the shorter side of uint8 [N, 3, H, W] and crop the center: [N, 3, S, S] with S = fit.crop."""
    resized = (resize_crop(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), fit) for image in images)
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [3, H, W] as a PNG file, which is lossless: metrics would measure the loss of JPEG, too."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _decoding(name: object) -> Iterator[None]:
    try:
        yield
    except CorecliError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(str(error).split(",")[0], where=name, hint=_BOMB_HINT) from error
    except UnidentifiedImageError as error:
        raise DataError("not an image, or its start is damaged", where=name, hint=_BAD_HINT) from error
    except Exception as error:  # decoders raise many kinds of exceptions for damaged files
        raise DataError(f"truncated or damaged image: {error}", where=name, hint=_BAD_HINT) from error


def refuse_bomb(size: tuple[int, int], max_pixels: int, name: object) -> None:
    """Raise DataError if an image of `size` has too many pixels."""
    if size[0] * size[1] > max_pixels:
        reason = f"{size[0]} x {size[1]} pixels exceed the limit of {max_pixels:,}"
        raise DataError(reason, where=name, hint=_BOMB_HINT)


def _check_sums(data: object) -> None:
    """Check the checksums of all chunks of a PNG file; Pillow ignores those of its pixels. Errors: ValueError."""
    if not isinstance(data, bytes) or not data.startswith(_PNG):
        return
    start, kind = len(_PNG), b""
    try:
        while kind != b"IEND":
            size, kind = _CHUNK.unpack_from(data, start)
            end = start + 8 + size
            if crc32(data[start + 4 : end]) != _SUM.unpack_from(data, end)[0]:
                raise ValueError("a checksum does not match")
            start = end + 4
    except struct.error:
        raise ValueError("the file ends before its last chunk") from None


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded. Pillow clips at 255 instead, which turns most images white."""
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
