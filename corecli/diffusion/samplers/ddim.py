"""DDIM (Song et al. 2021, Eq. 12): deterministic with eta 0, ancestral with eta 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.posterior import posterior

DEFAULT_STEPS, SPACING = 50, "even"
DIFFUSERS = "DDIMScheduler"
BOUNDS = {"eta": (0, 1)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ddim."""

    eta: float = 0.0


def sample_levels(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], draw_noise: DrawNoise, options: Options
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at the first level.

    eps is derived from the (clipped) x0, as in guided-diffusion, and the next level is read from the list, so any
    number of steps is exact.
    """
    for a, b in pairs(levels):
        x0 = predict(x, a).x0
        eps = (x - a.alpha * x0) / a.sigma
        variance = options.eta**2 * posterior(a, b).variance
        x = b.alpha * x0 + math.sqrt(max(b.sigma**2 - variance, 0)) * eps  # rounding can make it negative
        if variance > 0:
            x = x + math.sqrt(variance) * draw_noise()
    return x
