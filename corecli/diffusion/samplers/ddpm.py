"""Ancestral sampling (DDPM, Algorithm 2), respaced, with the learned variance where there is one (IDDPM)."""

from __future__ import annotations

import math

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.noise import DrawNoise, NoiseTables
from corecli.diffusion.objectives import learned_log_variance
from corecli.diffusion.samplers._solver import refuse_eta
from corecli.diffusion.timesteps import inclusive, pairs

DEFAULT_STEPS = 250


def sample(
    predict: Predict, x_T: torch.Tensor, *, tables: NoiseTables, steps: int, eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T of the same shape. Errors: UsageError for steps out of range or an eta.

    Without a learned variance the posterior's is used, the smaller of DDPM's two choices.
    """
    refuse_eta(eta, "ddpm")
    x = x_T
    for t, following in pairs(inclusive(len(tables), steps)):
        a, b = tables.alpha_bar_at(t), tables.alpha_bar_at(following)
        beta = 1 - a / b
        x0, v = predict(x, t)
        x = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
        if following >= 0:
            x = x + _std(v, posterior_variance=beta * (1 - b) / (1 - a), beta=beta) * draw_noise()
    return x


def _std(v: torch.Tensor | None, *, posterior_variance: float, beta: float) -> torch.Tensor | float:
    if v is None:
        return math.sqrt(posterior_variance)
    return torch.exp(0.5 * learned_log_variance(v, low=math.log(posterior_variance), high=math.log(beta)))
