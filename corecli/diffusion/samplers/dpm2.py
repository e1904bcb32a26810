"""DPM-Solver-2 (Lu et al. 2022), the midpoint method with midpoints that are even in log sigma."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.sampling import Denoise

DEFAULT_STEPS, SPACING = 18, "log-snr"
DIFFUSERS = "KDPM2DiscreteScheduler"


def sample(denoise: Denoise, x: torch.Tensor, *, sigmas: list[float], draw_noise: DrawNoise) -> torch.Tensor:
    """Return images [B, C, H, W] from x at sigmas[0]; N steps run the network 2 N - 1 times."""
    for a, b in pairwise(sigmas):
        slope = (x - denoise(x, a)) / a
        if b > 0:
            middle = math.sqrt(a * b)
            halfway = x + (middle - a) * slope
            slope = (halfway - denoise(halfway, middle)) / middle
        x = x + (b - a) * slope
    return x
