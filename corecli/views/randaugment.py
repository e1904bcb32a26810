"""RandAugment (Cubuk et al. 2020) on batches, with the ranges of timm's `rand-m9-mstd0.5-inc1`.

Each image gets two operations, each applied with probability 1/2, at a magnitude drawn around the given one. Pixels are
floats in [0, 1]; affine operations fill with the mean color. Results are not equal to timm's pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.rng import numpy_generator
from corecli.views.color import grayscale

MOST = 10.0  # the highest magnitude
_NUM_OPERATIONS, _CHANCE, _SPREAD = 2, 0.5, 0.5


def rand_augment(
    images: Tensor, *, magnitude: float, mean: Tensor, seed: int, step: int, batch: int, first: int
) -> Tensor:
    """Return augmented images.

    images: float [B, 3, H, W]; the first is number `first` of the `batch` images of a step; mean: [1, 3, 1, 1].
    """
    g = numpy_generator(seed, "randaugment", step)
    shape, rows = (_NUM_OPERATIONS, batch), slice(first, first + len(images))
    done = (g.random(shape) < _CHANCE)[:, rows]
    chosen = g.integers(0, len(OPERATIONS), shape)[:, rows]
    strength = (g.normal(magnitude, _SPREAD, shape).clip(0, MOST) / MOST * g.choice((-1.0, 1.0), shape))[:, rows]
    for these, ops, strengths in zip(done, chosen, strength, strict=True):
        for number, operation in enumerate(OPERATIONS.values()):
            at = np.flatnonzero(these & (ops == number))
            if len(at):
                index = torch.from_numpy(at).to(images.device)
                amount = torch.from_numpy(strengths[at]).to(images).view(-1, 1, 1, 1)
                images = images.index_copy(0, index, operation(images[index], amount, mean))
    return images


Operation = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, amounts [n, 1, 1, 1] in [-1, 1], mean -> images


def _auto_contrast(x: Tensor, _: Tensor, __: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-8), x)


def _equalize(x: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """Map each channel by the cumulative histogram of its 256 levels, as in Pillow."""
    levels = (x * 255).round().long().flatten(2)
    counts = x.new_zeros(*levels.shape[:2], 256, dtype=torch.long).scatter_add_(2, levels, torch.ones_like(levels))
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    below = counts.cumsum(2) - counts
    table = torch.where(step > 0, ((below + step // 2) // step.clamp(min=1)).clamp(max=255), torch.arange(256).to(step))
    return table.gather(2, levels).view_as(x).to(x) / 255


def _posterize(x: Tensor, amount: Tensor, _: Tensor) -> Tensor:
    width = 2.0 ** (8 - (4 - (4 * amount.abs()).floor()))  # of a step, in levels of 256
    return ((x * 255).round() / width).floor() * width / 255


def _solarize(x: Tensor, amount: Tensor, _: Tensor) -> Tensor:
    return torch.where(x * 255 >= 256 - (256 * amount.abs()).floor(), 1 - x, x)


def _add_to_dark(x: Tensor, amount: Tensor, _: Tensor) -> Tensor:
    return torch.where(x * 255 < 128, (x + (110 * amount.abs()).floor() / 255).clamp(max=1), x)


def _blend(x: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    return torch.lerp(other, x, 1 + 0.9 * amount).clamp(0, 1)


def _sharpness(x: Tensor, amount: Tensor, _: Tensor) -> Tensor:
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5
    smooth = x.clone()
    if min(x.shape[-2:]) > 2:
        smooth[..., 1:-1, 1:-1] = F.conv2d(x, (kernel / 13).to(x).expand(3, 1, 3, 3), groups=3)
    return _blend(x, smooth, amount)


def _affine(x: Tensor, rows: list[list[Tensor | float]], mean: Tensor) -> Tensor:
    """Sample images at the positions that a matrix [2, 3], in px from the center, gives for each pixel."""
    height, width = x.shape[-2:]
    parts = [torch.as_tensor(value).to(x).expand(len(x), 1, 1, 1).flatten() for row in rows for value in row]
    theta = torch.stack(parts, 1).view(-1, 2, 3)
    scale = x.new_tensor([[1, height / width, 2 / width], [width / height, 1, 2 / height]])  # to torch's -1..1
    grid = F.affine_grid(theta * scale, list(x.shape), align_corners=False)
    return F.grid_sample(x - mean, grid, align_corners=False).add(mean).clamp(0, 1)


def _rotate(x: Tensor, amount: Tensor, mean: Tensor) -> Tensor:
    angle = amount * math.radians(30)
    return _affine(x, [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]], mean)


OPERATIONS: dict[str, Operation] = {
    "auto-contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda x, _, __: 1 - x,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize-add": _add_to_dark,
    "color": lambda x, amount, _: _blend(x, grayscale(x), amount),
    "contrast": lambda x, amount, _: _blend(x, grayscale(x).mean((1, 2, 3), keepdim=True), amount),
    "brightness": lambda x, amount, _: _blend(x, torch.zeros_like(x), amount),
    "sharpness": _sharpness,
    "shear-x": lambda x, amount, mean: _affine(x, [[1.0, 0.3 * amount, 0.0], [0.0, 1.0, 0.0]], mean),
    "shear-y": lambda x, amount, mean: _affine(x, [[1.0, 0.0, 0.0], [0.3 * amount, 1.0, 0.0]], mean),
    "translate-x": lambda x, a, mean: _affine(x, [[1.0, 0.0, 0.45 * a * x.shape[-1]], [0.0, 1.0, 0.0]], mean),
    "translate-y": lambda x, a, mean: _affine(x, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.45 * a * x.shape[-2]]], mean),
}
