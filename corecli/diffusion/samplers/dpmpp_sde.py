"""SDE-DPM-Solver++ of second order in single steps: the reverse SDE, exact in its linear part (Lu et al. 2022).

With l = -log sigma the SDE is dx = (1 + eta^2) (x0 - x) dl + sqrt(2) eta sigma dW. All eta have the same marginals; eta
0 is the ODE, eta 1 the reversed diffusion. Each step takes x0 from its middle in l, as the midpoint method does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.sampling import Denoise

DEFAULT_STEPS, SPACING = 25, "log-snr"
BOUNDS = {"eta": (0, None)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of dpmpp-sde. eta: strength of the noise, 0 for none."""

    eta: float = 1.0


def sample(
    denoise: Denoise, x: torch.Tensor, *, sigmas: list[float], draw_noise: DrawNoise, options: Options
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at sigmas[0]; N steps run the network 2 N - 1 times."""
    eta = options.eta
    for a, b in pairwise(sigmas):
        x0 = denoise(x, a)
        if b == 0:
            return x0
        middle = math.sqrt(a * b)
        kept = (middle / a) ** (1 + eta**2)  # of x in half a step
        std = math.sqrt(1 - (middle / a) ** (2 * eta**2))  # of the noise in half a step, divided by sigma
        first, second = (middle * std * draw_noise(), b * std * draw_noise()) if eta else (0.0, 0.0)
        x0 = denoise(kept * x + (1 - kept) * x0 + first, middle)
        x = kept**2 * x + (1 - kept**2) * x0 + kept * first + second
    return x
