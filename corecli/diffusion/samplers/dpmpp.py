"""DPM-Solver++ 2M (Lu et al. 2022, Algorithm 2), on any process."""

from __future__ import annotations

import math

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, noise_ratio, pairs
from corecli.diffusion.noise import DrawNoise

DEFAULT_STEPS, SPACING = 20, "log-snr"
DIFFUSERS = "DPMSolverMultistepScheduler"


def sample_levels(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], draw_noise: DrawNoise
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at the first level.

    The first step is of first order. So is the last one, because the log-SNR of the clean image is infinite, and the
    second one if the levels start at pure noise.
    """
    before, gap_before = None, math.inf
    for a, b in pairs(levels):
        x0 = predict(x, a).x0
        gap = math.log(noise_ratio(a) / noise_ratio(b)) if b.sigma > 0 else math.inf
        second = 0.0 if math.isinf(gap) else gap / (2 * gap_before)
        toward = x0 if before is None or not second else x0 + second * (x0 - before)
        kept = b.sigma / a.sigma
        x = kept * x + (b.alpha - kept * a.alpha) * toward
        before, gap_before = x0, gap
    return x
