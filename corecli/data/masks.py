"""Images with masks, which have the class of every pixel; an image and its mask have the same key.

A mask is a PNG of one channel, or with a palette as VOC's, whose values are the numbers of classes; 255 is no class.
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
from corecli.data.pixels import EncodedPixels, OnBad, Store

NOT_COUNTED = -1  # pixels of no class, once read
_NO_CLASS = 255


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedImages:
    """The images of a set, each of its own size, and their masks: the `positions` of a store, by row."""

    images: ImageSet
    masks: Store
    positions: Sequence[int]
    zero_is_no_class: bool = False

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(image uint8 [3, H, W], its mask). Errors: DataError naming a bad file, or one of another size."""
        pixels, mask = getattr(self.images, "pixels", None), self.read_mask(row)
        if isinstance(pixels, EncodedPixels):
            image = pixels.read_one(row)
        else:
            image = self.images.read(np.array([row]))[0].numpy()
        if image.shape[1:] != mask.shape:
            sizes = [f"{width} x {height}" for height, width in (mask.shape, image.shape[1:])]
            reason = f"a mask of {sizes[0]} for an image of {sizes[1]}, {self.images.rows.keys[row]}"
            raise DataError(reason, where=self.mask_name(row))
        return image, mask

    def read_mask(self, row: int) -> np.ndarray:
        """int32 [H, W]: classes from 0 on, NOT_COUNTED elsewhere. Errors: DataError naming the file."""
        mask = decode_mask(self._fetch(row), name=self.mask_name(row))
        mask[mask == _NO_CLASS] = NOT_COUNTED
        if self.zero_is_no_class:
            mask[mask > NOT_COUNTED] -= 1
        return mask

    def mask_name(self, row: int) -> str:
        """What errors call the mask."""
        return self.masks.name(self.positions[row])

    def _fetch(self, row: int) -> bytes:
        data = self.masks.fetch(self.positions[row])
        assert isinstance(data, bytes)
        return data


def open_masked(
    spec: str, masks: str | None, *, on_bad: OnBad = "fail", zero_is_no_class: bool = False
) -> MaskedImages:
    """An image set with the masks of another of files, joined by key; without one, the masks that it has itself.

    `torchvision:VOCSegmentation:SPLIT` has its own. With `zero_is_no_class` a mask's 1 is the first class and its 0
    none, as in ADE20K. Errors: as `open_set`; DataError for images without a mask.
    """
    images = open_set(spec, on_bad=on_bad)
    if masks is None:
        store, positions = _own_masks(images, spec)
    else:
        pixels = getattr(found := open_set(masks), "pixels", None)
        if not isinstance(pixels, EncodedPixels):
            raise DataError("masks are image files", where=masks, hint="give a folder of PNG files, or a tar of them")
        place = {key: int(position) for key, position in zip(found.rows.keys, pixels.positions, strict=True)}
        without = [key for key in images.rows.keys if key not in place]
        if without:
            reason = f"{len(without)} of {len(images.rows)} images have no mask, such as {without[0]}"
            raise DataError(reason, where=masks, hint="a mask has the name of its image, up to the extension")
        store, positions = pixels.store, [place[key] for key in images.rows.keys]
    return MaskedImages(images=images, masks=store, positions=positions, zero_is_no_class=zero_is_no_class)


def random_window(
    image: np.ndarray, mask: np.ndarray, *, scale: float, place: tuple[float, float], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A square cut from an image resized by `scale`, uint8 [3, size, size], and from its mask, int32 [size, size].

    place: where between its highest and lowest position, and its first and last column, in 0..1. A side that is shorter
    than the window is there as a whole, and the rest of the window black and not counted.
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
