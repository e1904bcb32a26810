"""Cut views out of single images of any size: crop, resize, flip, on uint8 pixels, where the images are decoded."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.views.augment import Cuts

_REDUCED_GAP = 2.0  # a decoder may reduce an image if crops keep this many pixels for each pixel of a view


class Picture(Protocol):
    """An image that is decoded when its pixels are needed; `data.pictures` has it."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        ...

    @property
    def divisors(self) -> tuple[int, ...]:
        """The divisors of the size at which the image can be decoded; 1 is always one."""
        ...

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Return uint8 [h, w, 3] at a part of the size."""
        ...


def cut_views(picture: Picture, cuts: list[tuple[Cuts, int]], boxes: list[np.ndarray], into: list[Tensor]) -> None:
    """Decode an image once and write its views, uint8 [3, h, w], into the given tensors.

    cuts: the geometry of each view, and the position of the image in it; boxes: int64 [4] of each view.
    """
    divisor = 1 if any(cut.shrink[i] < 1 for cut, i in cuts) else _divisor(picture, boxes, into)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the pixels may be read-only, and are not written to
        image = torch.from_numpy(np.ascontiguousarray(picture.pixels(divisor))).permute(2, 0, 1)[None]
    for (cut, i), box, out in zip(cuts, boxes, into, strict=True):
        source = image if cut.shrink[i] == 1 else _shrunk(image, float(cut.shrink[i]))
        top, left, height, width = box.tolist()
        rows, columns = _reduced(top, height, divisor), _reduced(left, width, divisor)
        view = _resized(source[:, :, rows, columns], out.shape[1], out.shape[2])[0]
        out.copy_(view.flip(-1) if cut.flip[i] else view)


def _divisor(picture: Picture, boxes: list[np.ndarray], into: list[Tensor]) -> int:
    """Return the largest divisor of the image's size that leaves every crop enough pixels."""
    pairs = zip(boxes, into, strict=True)
    most = min(min(box[2] / out.shape[1], box[3] / out.shape[2]) for box, out in pairs) / _REDUCED_GAP
    return max(divisor for divisor in picture.divisors if divisor <= max(1, most))


def _reduced(start: int, length: int, divisor: int) -> slice:
    """Return a range of pixels in an image that the decoder has reduced."""
    return slice(round(start / divisor), round((start + length) / divisor))


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [1, 3, H, W] as torchvision does with bicubic interpolation and `antialias=True`."""
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True)


def _shrunk(image: Tensor, part: float) -> Tensor:
    """Return an image resized to `part` of its sides and back."""
    height, width = image.shape[-2:]
    small = _resized(image, max(1, round(height * part)), max(1, round(width * part)))
    return _resized(small, height, width)
