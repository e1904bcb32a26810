"""DPM-Solver++ 2S (Lu et al. 2022, Algorithm 1) to a lower sigma, with new noise after each step (Song et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.sampling import Denoise

DEFAULT_STEPS, SPACING = 25, "log-snr"
BOUNDS = {"eta": (0, 1)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of dpmpp-2s-ancestral. eta: noise per step, 0 for none to 1 for the posterior's."""

    eta: float = 1.0


def sample(
    denoise: Denoise, x: torch.Tensor, *, sigmas: list[float], draw_noise: DrawNoise, options: Options
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at sigmas[0]; N steps run the network 2 N - 1 times."""
    for a, b in pairwise(sigmas):
        new = options.eta * b * math.sqrt(1 - (b / a) ** 2)  # Song et al., Eq. 16
        down = math.sqrt(b**2 - new**2)
        toward = denoise(x, a)
        if b > 0:
            middle = math.sqrt(a * down)
            toward = denoise(_decay(x, toward, middle / a), middle)
        x = _decay(x, toward, down / a)
        if new > 0:
            x = x + new * draw_noise()
    return x


def _decay(x: torch.Tensor, x0: torch.Tensor, factor: float) -> torch.Tensor:
    """Return the exact solution for a constant x0, with sigma multiplied by `factor`."""
    return factor * x + (1 - factor) * x0
