"""Color distortions with parameters and an order of operations for each image of a batch.

Pixels are float32 [B, 3, N] in [0, 1]: red, green and blue planes of N = H * W values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Planes = Sequence[Tensor]  # red, green and blue

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601 weights as torchvision rounds them


def hue_position(order: np.ndarray) -> np.ndarray:
    """Return the position of the hue rotation in the operations of each image: int64 [B]; -1 for no jitter."""
    return np.where(order[:, 0] < 0, -1, (order == HUE).argmax(1))


def jitter(pixels: Tensor, order: np.ndarray, factors: np.ndarray, *, compile: bool = False) -> None:
    """Change brightness, contrast, saturation and hue in place, in each image's own order, as in torchvision on floats.

    Images must be sorted by `hue_position(order)`. The images with operations before the hue, and those with operations
    after it, are then slices, and nothing is masked or gathered.

    order: int [B, 4], a permutation of the four operations, or a row of -1 for no jitter; factors: float [B, 4] by
    operation: ratios for the first three, turns in [-0.5, 0.5] for the hue.
    """
    hue_at = hue_position(order)
    if (hue_at < 0).all():
        return
    start = int(np.searchsorted(hue_at, 0))
    blends, contrasts, turns = (_move(array, pixels) for array in (*_blends(order, factors), factors[start:, HUE]))
    for position in range(3):
        rows = slice(int(np.searchsorted(hue_at, position, side="right")), len(order))
        _blend(pixels[rows], blends[position, rows], contrasts[position, rows])
    _turn(pixels[start:], turns, compile)
    for position in range(1, 4):
        rows = slice(start, int(np.searchsorted(hue_at, position)))
        _blend(pixels[rows], blends[position, rows], contrasts[position, rows])


def jitter_one(pixels: Tensor, order: np.ndarray, factors: np.ndarray) -> None:
    """Change one large image as `jitter` does, up to rounding: pixels [3, N], order and factors [4].

    Single operations in place are faster than matrices of 3 x 3 here. A row of -1 changes nothing.
    """
    red, green, blue = pixels
    for operation in order.tolist():
        factor = float(factors[operation])
        if operation == HUE:
            rotate_hue(pixels[None], torch.tensor([factor]), out=pixels[None].unbind(1))
        elif operation == BRIGHTNESS:
            pixels.mul_(factor).clamp_(0, 1)
        elif operation == CONTRAST:
            luma = sum(weight * mean for weight, mean in zip(_LUMA, pixels.mean(1).tolist(), strict=True))
            pixels.mul_(factor).add_((1 - factor) * luma).clamp_(0, 1)
        elif operation == SATURATION:
            weights = [(1 - factor) * weight for weight in _LUMA]
            luma = (weights[0] * red).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])
            pixels.mul_(factor).add_(luma).clamp_(0, 1)


def rotate_hue(pixels: Tensor, turns: Tensor, *, out: Planes | None = None) -> Planes:
    """Return the planes [B, N] of colors with the hue rotated by `turns` [B] in [-0.5, 0.5] of a circle.

    HSV's saturation and value are kept. `out` receives the result and may be the planes of `pixels` themselves.

    With the highest channel scaled to 1 and the lowest to 0, a hue h in [0, 6) satisfies |h - 3| = 2 + r - g - b, and
    h > 3 where b > g. In reverse, a channel is 1 near its own hue (r at 0, g at 2, b at 4) and falls linearly. These
    closed forms need no comparisons, which cost a CPU several times as much as an addition.
    """
    red, green, blue = pixels.unbind(1)
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(high, blue, out=high)
    torch.minimum(low, blue, out=low)
    hue, spread = (red - green).sub_(blue).add_(low), high - low
    places = (None, None, None) if out is None else out  # from here on `pixels` may be overwritten
    side = torch.sub(blue, green, out=places[2])
    hue.div_(torch.clamp(spread, min=1e-8, out=places[1])).add_(2)
    hue.copysign_(side).mul_(1 / 6).add_(turns[:, None] + 1.5).frac_().mul_(6)
    turned = []
    for place, center, edge, sign in zip(places, (3, 2, 4), (low, high, high), (1, -1, -1), strict=True):
        fall = torch.sub(hue, center, out=place).abs_().sub_(1).clamp_(0, 1)
        turned.append(torch.addcmul(edge, spread, fall, value=sign, out=fall))
    return turned


def grayscale(images: Tensor) -> Tensor:
    """Return images [B, 3, H, W] with each color replaced by its luma, in the same shape."""
    red, green, blue = (weight * plane for weight, plane in zip(_LUMA, images.unbind(1), strict=True))
    return (red + green).add_(blue)[:, None].expand_as(images)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Return images with the values at or above `threshold` inverted."""
    return torch.where(images >= threshold, 1 - images, images)


def _turn(pixels: Tensor, turns: Tensor, compile: bool) -> None:
    planes = pixels.unbind(1)
    if not compile:
        rotate_hue(pixels, turns, out=planes)
        return
    for plane, turned in zip(planes, _compiled_hue(pixels, turns), strict=True):
        plane.copy_(turned)  # compiled code that writes in place is several times slower


def _blends(order: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the operation at each position as color matrices [4, B, 3, 3] and weights of the mean luma [4, B].

    Brightness, contrast and saturation each blend the image with another one (black, its mean luma, its luma), so all
    are a matrix and an offset. The entries at the position of the hue are not used.
    """
    operation = order.T
    factor = np.take_along_axis(factors, order.clip(0), axis=1).T
    saturation = np.where(operation == SATURATION, 1 - factor, 0.0)
    contrast = np.where(operation == CONTRAST, 1 - factor, 0.0)
    return factor[..., None, None] * np.eye(3) + saturation[..., None, None] * np.array(_LUMA), contrast


def _blend(pixels: Tensor, matrices: Tensor, contrasts: Tensor) -> None:
    if len(pixels) == 0:
        return
    red, green, blue = pixels.mean(2).unbind(1)
    offset = contrasts * (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)
    blended = torch.baddbmm(offset[:, None, None], matrices, pixels)
    torch.clamp(blended, 0, 1, out=pixels)


def _move(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(like.device, non_blocking=True)


class CompiledOrEager:
    """A function that is compiled at its first call; without a compiler it warns once and stays eager."""

    def __init__(self, function: Callable[..., Planes]) -> None:
        self._eager = function
        self._call: Callable[..., Planes] | None = None

    def __call__(self, *args: Tensor) -> Planes:
        """Call the function."""
        try:
            self._call = self._call or torch.compile(self._eager, dynamic=True)
            return self._call(*args)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"augmentation runs uncompiled: {reason}", stacklevel=2)
            self._call = self._eager
            return self._eager(*args)


_compiled_hue = CompiledOrEager(rotate_hue)
