"""Heun's second-order method on the probability-flow ODE (EDM, Algorithm 1), on any process."""

from __future__ import annotations

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, pairs
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.line import Line
from corecli.diffusion.samplers.parts.refusals import refuse_eta

DEFAULT_STEPS = 18
SPACING = "log-snr"


def sample(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from x at the first level, in 2 steps - 1 evaluations of the network.

    Errors: UsageError for an eta.
    """
    refuse_eta(eta, "heun")
    line = Line.of(levels)
    z = x / line.norm(levels[0])
    for a, b in pairs(levels):
        step = line.tau(b) - line.tau(a)
        slope = line.slope(predict, z, a)
        if b.sigma > 0:
            slope = (slope + line.slope(predict, z + step * slope, b)) / 2
        z = z + step * slope
    return z
