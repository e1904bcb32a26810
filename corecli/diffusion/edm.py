"""EDM: a network preconditioned for every noise level of a variance-exploding process (Karras et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.diffusion.levels import Level, check_spacing, check_steps, column
from corecli.diffusion.timesteps import rho_levels

SIGMA_DATA = 0.5  # std of pixels in [-1, 1]
P_MEAN, P_STD = -1.2, 1.2  # of log sigma in training
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # where sampling ends and begins


@dataclass(frozen=True, kw_only=True)
class Edm:
    """An Objective (see `objectives.py`) with alpha = 1: x = x0 + sigma noise (EDM, Table 1, last column).

    The network F is part of the denoiser D = c_skip x + c_out F(c_in x; c_noise); its target is what makes D = x0,
    and the paper's weight 1 / c_out^2 on the error of D is a weight of 1 on the error of F (EDM, Eq. 8).
    """

    name: str = "edm"

    sampler: ClassVar[str] = "heun"  # EDM, Table 1
    spacing: ClassVar[str | None] = "karras"
    clips: ClassVar[bool] = False
    latent_scale: ClassVar[float] = SIGMA_DATA

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """sigma, log-normal, float32."""
        return torch.exp(P_MEAN + P_STD * torch.randn(batch, generator=generator))

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """See `Objective.at`; t: [B], sigma."""
        sigma = column(t)
        return Level(alpha=torch.ones_like(sigma), sigma=sigma, t=t.log() / 4, scale=(sigma**2 + SIGMA_DATA**2) ** -0.5)

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """From sigma 80 to 0.002: "karras", even in sigma^(1/7) (EDM, Eq. 5), or "log-snr", even in log sigma."""
        check_spacing(spacing, ("karras", "log-snr"), self.name)
        check_steps(steps)
        ends = math.log(SIGMA_MAX), math.log(SIGMA_MIN)
        even = torch.linspace(*ends, steps, dtype=torch.float64).exp()
        sigmas = rho_levels(SIGMA_MAX, SIGMA_MIN, steps) if spacing == "karras" else even
        scales = ((sigmas**2 + SIGMA_DATA**2) ** -0.5).tolist()
        return [
            Level(alpha=1.0, sigma=sigma, t=math.log(sigma) / 4, scale=scale)
            for sigma, scale in zip(sigmas.tolist(), scales, strict=True)
        ]

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """The noise at sigma_max."""
        return level.sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """(x0 - c_skip x) / c_out, written so that nothing cancels where sigma is small."""
        return (level.sigma * x0 - SIGMA_DATA**2 * noise) * level.scale / SIGMA_DATA

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """None: see the class."""
        return None

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """D, with c_skip = (sigma_data c_in)^2 and c_out = sigma sigma_data c_in."""
        return (SIGMA_DATA * level.scale) ** 2 * x + level.sigma * SIGMA_DATA * level.scale * output
