"""Heun's second-order method on the probability-flow ODE (EDM, Algorithm 1), on any process."""

from __future__ import annotations

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.line import Line

DEFAULT_STEPS, SPACING = 18, "log-snr"
DIFFUSERS = "HeunDiscreteScheduler"


def sample_levels(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], draw_noise: DrawNoise
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at the first level; N steps run the network 2 N - 1 times."""
    line = Line.of(levels)
    z = x / line.norm(levels[0])
    for a, b in pairs(levels):
        step = line.tau(b) - line.tau(a)
        slope = line.slope(predict, z, a)
        if b.sigma > 0:
            slope = (slope + line.slope(predict, z + step * slope, b)) / 2
        z = z + step * slope
    return z
