"""Euler's method on the probability-flow ODE (EDM, section 3), the sampler of rectified flows.

Its steps are those of DDIM without noise, for both go straight in the same coordinates.
"""

from __future__ import annotations

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.line import Line
from corecli.diffusion.samplers.parts.refusals import refuse_eta

DEFAULT_STEPS = 50
SPACING = "even"


def sample(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from x at the first level. Errors: UsageError for an eta."""
    refuse_eta(eta, "euler")
    line = Line.of(levels)
    z = x / line.norm(levels[0])
    for a, b in pairs(levels):
        z = z + (line.tau(b) - line.tau(a)) * line.slope(predict, z, a)
    return z
