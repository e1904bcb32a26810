"""Euler's method with ancestral noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.sampling import Denoise

DEFAULT_STEPS, SPACING = 10, "even"
BOUNDS = {"noise": (0, 1)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of toy-sampler."""

    noise: float = 1.0


def sample(
    denoise: Denoise, x: torch.Tensor, *, sigmas: list[float], draw_noise: DrawNoise, options: Options
) -> torch.Tensor:
    for a, b in pairwise(sigmas):
        new = options.noise * b * math.sqrt(1 - (b / a) ** 2)
        x0 = denoise(x, a)
        x = x0 + math.sqrt(b**2 - new**2) / a * (x - x0) + new * draw_noise()
    return x
