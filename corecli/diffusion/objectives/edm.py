"""EDM: a network with preconditioning for all noise levels of a variance-exploding process (Karras et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.diffusion.levels import Level, check_spacing, check_steps, column
from corecli.diffusion.timesteps import rho_levels

SAMPLER, SPACING = "heun", "karras"  # EDM, Table 1
SIGMA_DATA = 0.5  # standard deviation of pixels in [-1, 1]
P_MEAN, P_STD = -1.2, 1.2  # mean and standard deviation of log sigma in training
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # last and first sigma of sampling


@dataclass(frozen=True, kw_only=True)
class Edm:
    """An Objective with alpha = 1: x = x0 + sigma noise (EDM, Table 1, last column).

    The network F is part of the denoiser D = c_skip x + c_out F(c_in x; c_noise). The target of F is the value with
    which D = x0, so the paper's weight 1 / c_out^2 on the error of D is a weight of 1 on the error of F (EDM, Eq. 8).
    """

    name: ClassVar[str] = "edm"
    spacing: ClassVar[str | None] = SPACING
    clips: ClassVar[bool] = False
    latent_scale: ClassVar[float] = SIGMA_DATA
    max_steps: ClassVar[int | None] = None

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Draw sigma from a log-normal distribution, float32 [B]."""
        return torch.exp(P_MEAN + P_STD * torch.randn(batch, generator=generator))

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """See `Objective.at`; t: sigma, [B]."""
        sigma = column(t)
        return Level(alpha=torch.ones_like(sigma), sigma=sigma, t=t.log() / 4, scale=(sigma**2 + SIGMA_DATA**2) ** -0.5)

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """Return levels from sigma 80 to 0.002: "karras", even in sigma^(1/7) (EDM, Eq. 5), or "log-snr"."""
        check_spacing(spacing, ("karras", "log-snr"), self.name)
        check_steps(steps)
        ends = math.log(SIGMA_MAX), math.log(SIGMA_MIN)
        even = torch.linspace(*ends, steps, dtype=torch.float64).exp()
        sigmas = rho_levels(SIGMA_MAX, SIGMA_MIN, steps) if spacing == "karras" else even
        scales = ((sigmas**2 + SIGMA_DATA**2) ** -0.5).tolist()
        return [_level(sigma, scale) for sigma, scale in zip(sigmas.tolist(), scales, strict=True)]

    def level_at(self, sigma: float) -> Level[float]:
        """See `Objective.level_at`."""
        return _level(sigma, (sigma**2 + SIGMA_DATA**2) ** -0.5)

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the noise, scaled to sigma_max."""
        return level.sigma * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """Return (x0 - c_skip x) / c_out, written so that nothing cancels at small sigma."""
        return (level.sigma * x0 - SIGMA_DATA**2 * noise) * level.scale / SIGMA_DATA

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """Return None: see the class."""
        return None

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return D, with c_skip = (sigma_data c_in)^2 and c_out = sigma sigma_data c_in."""
        return (SIGMA_DATA * level.scale) ** 2 * x + level.sigma * SIGMA_DATA * level.scale * output


def _level(sigma: float, scale: float) -> Level[float]:
    return Level(alpha=1.0, sigma=sigma, t=math.log(sigma) / 4, scale=scale)


build = Edm
