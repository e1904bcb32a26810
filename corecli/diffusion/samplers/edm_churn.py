"""EDM's stochastic sampler: noise is added before each step of Heun's method (Karras et al. 2022, Algorithm 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.sampling import Denoise

DEFAULT_STEPS, SPACING = 256, "karras"  # EDM, Table 5
BOUNDS = {"s_churn": (0, None), "s_tmin": (0, None), "s_tmax": (0, None), "s_noise": (0, None)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of edm-churn; the defaults are the values for ImageNet (EDM, Table 5).

    s_churn: amount of noise added over all steps. s_tmin, s_tmax: range of sigma in which it is added. s_noise: factor
    of its standard deviation.
    """

    s_churn: float = 40.0
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.003


def sample(
    denoise: Denoise, x: torch.Tensor, *, sigmas: list[float], draw_noise: DrawNoise, options: Options
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at sigmas[0]; N steps run the network 2 N - 1 times."""
    most = min(options.s_churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for a, b in pairwise(sigmas):
        raised = a * (1 + (most if options.s_tmin <= a <= options.s_tmax else 0))
        if raised > a:
            x = x + math.sqrt(raised**2 - a**2) * options.s_noise * draw_noise()
        slope = (x - denoise(x, raised)) / raised
        if b > 0:
            ahead = x + (b - raised) * slope
            slope = (slope + (ahead - denoise(ahead, b)) / b) / 2
        x = x + (b - raised) * slope
    return x
