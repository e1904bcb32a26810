"""Images with masks, which have the class of every pixel; an image and its mask have the same key.

A mask is a PNG with one channel, or with a palette as in VOC, whose values are class numbers; 255 is no class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from corecli.base.errors import DataError, UsageError
from corecli.data.decode import decode_mask
from corecli.data.formats.directory import Files
from corecli.data.imageset import ImageSet, open_set
from corecli.data.joins import find
from corecli.data.pixels import EncodedPixels, OnBad, Store
from corecli.data.rows import as_array

NOT_COUNTED = -1  # pixels of no class, once read
_NO_CLASS = 255


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedImages:
    """The images of a set, of any sizes, and their masks: row i has the mask at `positions[i]` of a store."""

    images: ImageSet
    masks: Store
    positions: Sequence[int]
    zero_is_no_class: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (image uint8 [3, H, W], mask int32 [H, W]). Errors: DataError if a file is bad or the sizes differ."""
        pixels, mask = getattr(self.images, "pixels", None), self.read_mask(row)
        if isinstance(pixels, EncodedPixels):
            image = pixels.read_one(row)
        else:
            image = self.images.read(np.array([row]))[0].numpy()
        if image.shape[1:] != mask.shape:
            sizes = [f"{width} x {height}" for height, width in (mask.shape, image.shape[1:])]
            reason = f"the mask is {sizes[0]} but its image {self.images.rows.keys[row]} is {sizes[1]}"
            raise DataError(reason, where=self.mask_name(row))
        return image, mask

    def read_mask(self, row: int) -> np.ndarray:
        """Return int32 [H, W], classes from 0 on and NOT_COUNTED elsewhere. Errors: DataError if the file is bad."""
        mask = decode_mask(self._fetch(row), name=self.mask_name(row))
        mask[mask == _NO_CLASS] = NOT_COUNTED
        if self.zero_is_no_class:
            mask[mask > NOT_COUNTED] -= 1
        return mask

    def mask_name(self, row: int) -> str:
        """Return the name of the mask for error messages."""
        return self.masks.name(self.positions[row])

    def _fetch(self, row: int) -> bytes:
        data = self.masks.fetch(self.positions[row])
        assert isinstance(data, bytes)
        return data


def open_masked(
    spec: str, masks: str | None, *, on_bad: OnBad = "fail", zero_is_no_class: bool = False
) -> MaskedImages:
    """Open an image set with its masks, from the set `masks` with the same keys, or else from the image set itself.

    `torchvision:VOCSegmentation:SPLIT` has its own masks. zero_is_no_class: class 1 of a file is the first class, and 0
    is no class, as in ADE20K. Errors: as `open_set`; DataError if an image has no mask.
    """
    images = open_set(spec, on_bad=on_bad)
    if masks is None:
        store, positions = _own_masks(images, spec)
    else:
        pixels = getattr(found := open_set(masks), "pixels", None)
        if not isinstance(pixels, EncodedPixels):
            raise DataError("masks must be image files", where=masks, hint="give a folder or a tar of PNG files")
        rows = as_array(find(images.rows.keys, found.rows.keys))
        without = np.flatnonzero(rows < 0)
        if len(without):
            first = images.rows.keys[int(without[0])]
            reason = f"{len(without)} of {len(images.rows)} images have no mask, such as {first}"
            raise DataError(reason, where=masks, hint="a mask needs the name of its image, except for the extension")
        store, positions = pixels.store, pixels.positions[rows].tolist()
    return MaskedImages(images=images, masks=store, positions=positions, zero_is_no_class=zero_is_no_class)


def random_window(
    image: np.ndarray, mask: np.ndarray, *, scale: float, place: tuple[float, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resize an image and its mask by `scale` and cut the same window: uint8 [3, size, size], int32 [size, size].

    place: vertical and horizontal position of the window, each from 0 (top, left) to 1. If the image is smaller than
    the window, the rest of the window is black and not counted.
    """
    height, width = mask.shape
    tall, wide = (max(1, round(side * scale)) for side in (height, width))
    h, w = min(size, tall), min(size, wide)
    top, left = int(place[0] * (tall - h + 1)), int(place[1] * (wide - w + 1))
    bottom, right = min(height, (top + h) * height / tall), min(width, (left + w) * width / wide)
    box = (left * width / wide, top * height / tall, right, bottom)
    window, labels = np.zeros((3, size, size), np.uint8), np.full((size, size), NOT_COUNTED, np.int32)
    pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    window[:, :h, :w] = np.asarray(pixels.resize((w, h), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    labels[:h, :w] = np.asarray(Image.fromarray(mask).resize((w, h), Image.Resampling.NEAREST, box=box))
    return window, labels


def _own_masks(images: ImageSet, spec: str) -> tuple[Store, Sequence[int]]:
    pixels = getattr(images, "pixels", None)
    files = getattr(getattr(getattr(pixels, "store", None), "dataset", None), "masks", None)
    if files is None or not isinstance(pixels, EncodedPixels):
        raise UsageError("has no masks of its own", where=spec, hint="give --train-masks and --test-masks")
    return Files(root=Path(), names=list(files)), pixels.positions.tolist()
