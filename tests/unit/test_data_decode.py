"""Decoding: every mode as a viewer would show it, and every bad file by name."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from corecli.base.errors import DataError
from corecli.data.decode import decode, decode_mask, encode_png, square

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def _bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _decoded(data: bytes, **options: object) -> np.ndarray:
    return decode(data, name="x", **options).transpose(1, 2, 0)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_rgb_is_exact(kind: str) -> None:
    data = _bytes(Image.fromarray(PHOTO), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(_decoded(data), PHOTO)


def test_jpeg_is_what_pillow_decodes() -> None:
    data = _bytes(Image.fromarray(PHOTO), "JPEG")
    assert np.array_equal(_decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_result_is_contiguous_channels_first() -> None:
    found = decode(_bytes(Image.fromarray(PHOTO)), name="x")
    assert found.shape == (3, 12, 20)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


def test_encode_png_is_the_inverse() -> None:
    pixels = np.ascontiguousarray(PHOTO.transpose(2, 0, 1))
    assert np.array_equal(decode(encode_png(pixels), name="x"), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = PHOTO
    turn = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 1, 7: 3, 8: 3}[orientation]  # how a camera stored the upright picture
    mirrored = orientation in (2, 4, 5, 7)
    stored = np.fliplr(upright) if mirrored else upright
    stored = np.rot90(stored, turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(_decoded(_bytes(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)), upright)


def test_grayscale_bilevel_and_palette() -> None:
    gray = PHOTO[..., 0]
    assert np.array_equal(_decoded(_bytes(Image.fromarray(gray))), np.repeat(gray[..., None], 3, axis=2))
    bits = Image.fromarray(gray > 127)
    assert np.array_equal(_decoded(_bytes(bits))[..., 1], np.where(gray > 127, 255, 0))
    palette = Image.fromarray(PHOTO).quantize(16)
    assert np.array_equal(_decoded(_bytes(palette)), np.asarray(palette.convert("RGB")))


def test_cmyk_is_converted() -> None:
    cmyk = Image.fromarray(np.broadcast_to(np.array([0, 255, 255, 0], np.uint8), (8, 8, 4)).copy(), "CMYK")
    red = _decoded(_bytes(cmyk, "TIFF"))
    assert (red == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grayscale_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    found = _decoded(_bytes(Image.fromarray(values), kind))
    expected = np.rint(values.astype(np.float64) * 255 / 65535)
    assert np.array_equal(found[..., 0], expected)
    assert np.array_equal(found[..., 0], found[..., 2])


def test_16_bit_grayscale_with_orientation() -> None:
    values = (np.arange(240, dtype=np.uint16) * 257).reshape(12, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _bytes(Image.fromarray(np.ascontiguousarray(np.rot90(values))), exif=exif)
    assert np.array_equal(_decoded(data)[..., 0], values // 257)


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([PHOTO, RNG.integers(0, 256, (12, 20), dtype=np.uint8)])
    alpha = rgba[..., 3:].astype(np.float64) / 255
    expected = alpha * PHOTO + (1 - alpha) * 255
    assert np.abs(_decoded(_bytes(Image.fromarray(rgba))) - expected).max() <= 1


def test_opaque_alpha_changes_nothing() -> None:
    rgba = np.dstack([PHOTO, np.full((12, 20), 255, np.uint8)])
    assert np.array_equal(_decoded(_bytes(Image.fromarray(rgba))), PHOTO)


def test_transparent_palette_color_is_white() -> None:
    image = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    image.putpalette([10, 20, 30] + [0, 0, 0] * 255)
    assert (_decoded(_bytes(image, transparency=0)) == 255).all()


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "blue")]
    found = _decoded(_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert (found == [255, 0, 0]).all()


def test_float_pixels_are_refused_by_name() -> None:
    data = _bytes(Image.fromarray(PHOTO[..., 0].astype(np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"depth\.tif: the range of 32-bit pixels"):
        decode(data, name="depth.tif")


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (9, 33), (16, 16), (7, 5)])
def test_resize_and_crop_is_torchvisions(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    both = [transforms.Resize(16, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(16)]
    assert np.array_equal(_decoded(_bytes(image), fits=[square(16)]), np.asarray(transforms.Compose(both)(image)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_truncated_file_is_named(kind: str, kept: float) -> None:
    data = _bytes(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(DataError, match=r"dog/7\.png: "):
        decode(data[: int(len(data) * kept)], name="dog/7.png")


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"x\.png"):
        decode(data, name="x.png")


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_every_flipped_bit_is_found_in_a_png(mode: str) -> None:
    """Pillow ignores the checksums of pixels, so that it reads one flip in ten."""
    whole = _bytes(Image.fromarray(PHOTO).convert(mode))
    for position in RNG.integers(0, len(whole), 200).tolist():
        data = bytearray(whole)
        data[position] ^= 1 << int(RNG.integers(8))
        for read in (decode, decode_mask) if mode == "P" else (decode,):
            with pytest.raises(DataError, match=r"x\.png"):
                read(bytes(data), name="x.png")
    with pytest.raises(DataError, match="ends before its last chunk"):
        decode(whole[:-12], name="x.png")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(8001, 8000), (12000, 12000), (60000, 60000)])
def test_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    header = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    chunk = b"IHDR" + header + bytes([8, 2, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    idat = b"IDAT" + zlib.compress(bytes(64))
    data += (len(idat) - 4).to_bytes(4, "big") + idat + zlib.crc32(idat).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"bomb\.png: .*(limit|exceeds)"):
        decode(data, name="bomb.png")


def test_pixel_cap_can_be_chosen() -> None:
    with pytest.raises(DataError, match="20 x 12 pixels exceed the limit of 239"):
        decode(_bytes(Image.fromarray(PHOTO)), name="x", max_pixels=239)
    assert decode(_bytes(Image.fromarray(PHOTO)), name="x", max_pixels=240).shape == (3, 12, 20)
