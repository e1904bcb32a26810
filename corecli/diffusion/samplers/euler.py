"""Euler's method on the probability-flow ODE (EDM, section 3), the usual sampler for rectified flows.

Its steps equal those of DDIM with eta 0 up to rounding.
"""

from __future__ import annotations

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.line import Line

DEFAULT_STEPS, SPACING = 50, "even"
DIFFUSERS = "EulerDiscreteScheduler"


def sample_levels(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], draw_noise: DrawNoise
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at the first level."""
    line = Line.of(levels)
    z = x / line.norm(levels[0])
    for a, b in pairs(levels):
        z = z + (line.tau(b) - line.tau(a)) * line.slope(predict, z, a)
    return z
