"""Mixup, CutMix and random erasing, for supervised training of vision transformers.

Draws are functions of (seed, step), for the global batch. Images are mixed in adjacent pairs, so a rank with an even
number of images holds whole pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from corecli.base.rng import numpy_generator, torch_generator

_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of an erased rectangle (Zhong et al. 2020, section 4.1; timm)
_NUM_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How each image of a step is mixed with the other image of its pair.

    keep: the weight of an image's own label; box: top, left, bottom and right, from 0 to 1, of the rectangle taken from
    the other image (CutMix); None for a weighted mean (Mixup).
    """

    keep: float
    box: tuple[float, float, float, float] | None = None


def draw_mixing(*, mixup: float, cutmix: float, switch: float, seed: int, step: int) -> Mixing:
    """Draw CutMix with probability `switch`, else Mixup, with weight from Beta(a, a) where a is `cutmix` or `mixup`.

    A value of 0 turns a method off; with both off, images are unchanged (Zhang et al. 2018; Yun et al. 2019).
    """
    g = numpy_generator(seed, "mixing", step)
    cuts = g.random() < (switch if mixup and cutmix else float(cutmix > 0))
    alpha = cutmix if cuts else mixup
    keep = float(g.beta(alpha, alpha)) if alpha else 1.0
    if not cuts:
        return Mixing(keep=keep)
    side, (y, x) = math.sqrt(1 - keep), g.random(2).tolist()
    top, bottom, left, right = (min(max(c + s * side / 2, 0.0), 1.0) for c in (y, x) for s in (-1, 1))
    return Mixing(keep=keep, box=(top, left, bottom, right))


def mix(images: Tensor, labels: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor, float]:
    """Return mixed images [B, 3, H, W], labels [B] of the other images, and the weight of the own label; B is even."""
    others = torch.arange(len(images), device=images.device) ^ 1
    if mixing.box is None:
        return torch.lerp(images[others], images, mixing.keep), labels[others], mixing.keep
    height, width = images.shape[-2:]
    (top, bottom), (left, right) = (
        tuple(round(part * side) for part in mixing.box[first::2]) for first, side in ((0, height), (1, width))
    )
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[others][..., top:bottom, left:right]
    return mixed, labels[others], 1 - (bottom - top) * (right - left) / (height * width)


def erase(images: Tensor, *, probability: float, mean: Tensor, std: Tensor, seed: int, step: int, first: int) -> Tensor:
    """Replace a random rectangle of each image by normal noise with `mean` and `std` [1, 3, 1, 1]; return the images.

    images: float [B, 3, H, W], changed in place; the first is number `first` of the global batch. Each image is changed
    with the given probability.
    """
    height, width = images.shape[-2:]
    for number, image in enumerate(images, start=first):
        g = numpy_generator(seed, "erase", step, number)
        if g.random() >= probability:
            continue
        for _ in range(_NUM_TRIES):
            area = height * width * g.uniform(*_AREA)
            ratio = math.exp(g.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                top, left = int(g.integers(height - h + 1)), int(g.integers(width - w + 1))
                noise = torch.randn(1, 3, h, w, generator=torch_generator(seed, "erased", step, number))
                image[:, top : top + h, left : left + w] = (mean + std * noise.to(mean.device))[0]
                break
    return images
