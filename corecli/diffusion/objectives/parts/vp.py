"""The variance-preserving process of DDPM, on which networks predict the noise, the image or a mixture of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.levels import Level, check_spacing, column
from corecli.diffusion.noise import NoiseTables, noise_tables
from corecli.diffusion.timesteps import SPACINGS, log_snrs


@dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """The part of an Objective that is common to all predictions on T timesteps, alpha^2 + sigma^2 = 1 (DDPM, Eq. 4).

    A subclass adds `name`, `target` and `x0`, and `output_weight` if it supports min-SNR weighting.
    min_snr: gamma of min-SNR weighting (Hang et al. 2023); 0 means the plain squared error.
    Errors: UsageError if the schedule is unknown, there are too few timesteps, or gamma is negative.
    """

    schedule: str = "linear"
    diffusion_steps: int = 1000
    min_snr: float = 0.0

    name: ClassVar[str]
    spacing: ClassVar[str | None] = None
    clips: ClassVar[bool] = True
    latent_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        self.tables()  # raises for what it cannot make
        if self.min_snr < 0:
            raise UsageError(f"min-SNR gamma {self.min_snr:g} is negative", hint="use 5, or 0 for no weighting")

    @property
    def max_steps(self) -> int:
        """Return the number of timesteps, since a sampler visits each at most once."""
        return self.diffusion_steps

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Draw timesteps uniformly, int64 [B]."""
        return torch.randint(self.diffusion_steps, (batch,), generator=generator)

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """See `Objective.at`; t: int64 [B]."""
        alpha_bar = self.tables(t.device).alpha_bar[t]
        ones = torch.ones((), device=t.device)
        return Level(alpha=column(alpha_bar.sqrt()), sigma=column((1 - alpha_bar).sqrt()), t=t, scale=ones)

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """See `Objective.levels`; they are trained timesteps."""
        check_spacing(spacing, tuple(SPACINGS), self.name)
        tables = self.tables()
        return [self._level(tables.alpha_bar_at(t), t) for t in SPACINGS[spacing](tables, steps)]

    def level_at(self, sigma: float) -> Level[float]:
        """See `Objective.level_at`; t is fractional, interpolated linearly in log(sigma / alpha) between timesteps.

        Beyond the first and the last timestep the network sees these, at the requested alpha and sigma.
        """
        logs, wanted = -log_snrs(self.tables()), math.log(sigma)
        above = min(max(int(torch.searchsorted(logs, wanted)), 1), len(logs) - 1)
        low, high = logs[above - 1].item(), logs[above].item()
        t = above - 1 + (wanted - low) / (high - low)
        alpha = 1 / math.hypot(1, sigma)
        return Level(alpha=alpha, sigma=sigma * alpha, t=min(max(t, 0.0), len(logs) - 1.0), scale=1.0)

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the noise itself (DDPM, Algorithm 2)."""
        return noise

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """See `Objective.weight`: min(SNR, gamma) on the error of x0 (Hang et al. 2023, section 3.4)."""
        if not self.min_snr:
            return None
        snr = (level.alpha / level.sigma) ** 2
        return self.output_weight(snr.clamp(max=self.min_snr), snr)

    def output_weight(self, weight: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
        """Return the weight of the output's squared error that equals a weight of the error of x0, [B, 1, 1, 1]."""
        raise UsageError(f"the {self.name} objective has no min-SNR weighting", hint="use 0")

    def tables(self, device: torch.device | None = None) -> NoiseTables:
        """Return the tables of the process on a device, the CPU if None."""
        return noise_tables(self.schedule, self.diffusion_steps, device)

    def _level(self, alpha_bar: float, t: int) -> Level[float]:
        return Level(alpha=math.sqrt(alpha_bar), sigma=math.sqrt(1 - alpha_bar), t=t, scale=1.0)
