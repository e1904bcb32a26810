"""Ancestral sampling (DDPM, Algorithm 2) on any list of timesteps, with the learned variance if any (IDDPM)."""

from __future__ import annotations

import math

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.posterior import posterior
from corecli.diffusion.variance import learned_log_variance

DEFAULT_STEPS, SPACING = 250, "inclusive"
DIFFUSERS = "DDPMScheduler"


def sample_levels(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], draw_noise: DrawNoise
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at the first level.

    Without a learned variance, the variance is the posterior's, the smaller one of DDPM's two choices.
    """
    for a, b in pairs(levels):
        step = posterior(a, b)
        x0, v = predict(x, a)
        x = step.mean_x0 * x0 + step.mean_x * x
        if b.sigma > 0:
            x = x + _std(v, small=step.variance, large=step.forward) * draw_noise()
    return x


def _std(v: torch.Tensor | None, *, small: float, large: float) -> torch.Tensor | float:
    if v is None:
        return math.sqrt(small)
    return torch.exp(0.5 * learned_log_variance(v, low=math.log(small), high=math.log(large)))
