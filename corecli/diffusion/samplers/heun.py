"""Heun's second-order method on the probability-flow ODE (EDM, Algorithm 1, on the variance-preserving model).

In x / sqrt(alpha_bar), with sigma = sqrt((1 - alpha_bar) / alpha_bar), the ODE is dx / dsigma = eps.
"""

from __future__ import annotations

import math

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.noise import DrawNoise, NoiseTables
from corecli.diffusion.samplers._solver import refuse_eta
from corecli.diffusion.timesteps import log_snr, pairs

DEFAULT_STEPS = 18


def sample(
    predict: Predict, x_T: torch.Tensor, *, tables: NoiseTables, steps: int, eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T of the same shape, in 2 steps - 1 evaluations of the network.

    Errors: UsageError for steps out of range or an eta.
    """
    refuse_eta(eta, "heun")

    def slope(y: torch.Tensor, t: int) -> torch.Tensor:
        x0 = predict(y * math.sqrt(tables.alpha_bar_at(t)), t).x0
        return (y - x0) / _sigma(tables, t)

    timesteps = log_snr(tables, steps)
    y = x_T / math.sqrt(tables.alpha_bar_at(timesteps[0]))
    for t, following in pairs(timesteps):
        step = _sigma(tables, following) - _sigma(tables, t)
        eps = slope(y, t)
        if following >= 0:
            eps = (eps + slope(y + step * eps, following)) / 2
        y = y + step * eps
    return y


def _sigma(tables: NoiseTables, t: int) -> float:
    alpha_bar = tables.alpha_bar_at(t)
    return math.sqrt((1 - alpha_bar) / alpha_bar)
