"""DDIM (Song et al. 2021, Eq. 12): deterministic at eta 0, ancestral at eta 1."""

from __future__ import annotations

import math

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.posterior import posterior

DEFAULT_STEPS = 50
SPACING = "even"


def sample(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from x at the first level. Errors: UsageError for eta out of range.

    eps is always derived again from the (clipped) x0, as in guided-diffusion, and the next level is taken from the
    list, so any number of steps is exact.
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta:g} is outside 0 to 1")
    for a, b in pairs(levels):
        x0 = predict(x, a).x0
        eps = (x - a.alpha * x0) / a.sigma
        variance = eta**2 * posterior(a, b).variance
        x = b.alpha * x0 + math.sqrt(max(b.sigma**2 - variance, 0)) * eps  # rounding can leave it below 0
        if variance > 0:
            x = x + math.sqrt(variance) * draw_noise()
    return x
