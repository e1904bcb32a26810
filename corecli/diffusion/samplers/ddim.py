"""DDIM (Song et al. 2021, Eq. 12): deterministic at eta 0, ancestral at eta 1."""

from __future__ import annotations

import math

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Predict
from corecli.diffusion.noise import DrawNoise, NoiseTables
from corecli.diffusion.timesteps import leading, pairs

DEFAULT_STEPS = 50


def sample(
    predict: Predict, x_T: torch.Tensor, *, tables: NoiseTables, steps: int, eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T of the same shape. Errors: UsageError for steps or eta out of range.

    eps is always derived again from the (clipped) x0, as in guided-diffusion, and the next timestep is taken from
    the list, so any number of steps is exact.
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta:g} is outside 0 to 1")
    x = x_T
    for t, following in pairs(leading(len(tables), steps)):
        a, b = tables.alpha_bar_at(t), tables.alpha_bar_at(following)
        x0 = predict(x, t).x0
        eps = (x - math.sqrt(a) * x0) / math.sqrt(1 - a)
        sigma = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        x = math.sqrt(b) * x0 + math.sqrt(1 - b - sigma**2) * eps
        if sigma > 0:
            x = x + sigma * draw_noise()
    return x
