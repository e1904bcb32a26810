"""The variance-preserving process of DDPM, on which a network predicts the noise, the image or v."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.levels import Level, check_spacing, column
from corecli.diffusion.noise import NoiseTables, noise_tables
from corecli.diffusion.timesteps import SPACINGS
from corecli.diffusion.variance import variance_loss

PREDICTIONS = ("eps", "v", "x0")


@dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """An Objective (see `objectives.py`) on T timesteps with alpha^2 + sigma^2 = 1 (DDPM, Eq. 4).

    name: "eps", the noise (DDPM, Eq. 14); "x0", the image; "v", alpha eps - sigma x0 (Salimans and Ho 2022,
    appendix D). min_snr: the gamma of min-SNR weighting (Hang et al. 2023), 0 for the plain squared error.
    Errors: UsageError for an unknown schedule, too few timesteps or a negative gamma.
    """

    name: str = "eps"
    schedule: str = "linear"
    num_timesteps: int = 1000
    min_snr: float = 0.0

    sampler: ClassVar[str] = "ddim"
    spacing: ClassVar[str | None] = None
    clips: ClassVar[bool] = True
    latent_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        assert self.name in PREDICTIONS, self.name
        noise_tables(self.schedule, self.num_timesteps)  # refuses what it cannot make
        if self.min_snr < 0:
            raise UsageError(f"min-SNR gamma {self.min_snr:g} is negative", hint="use 5, or 0 for no weighting")

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Even timesteps, int64."""
        return torch.randint(self.num_timesteps, (batch,), generator=generator)

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """See `Objective.at`; t: [B] int64."""
        alpha_bar = self._tables(t.device).alpha_bar[t]
        ones = torch.ones((), device=t.device)
        return Level(alpha=column(alpha_bar.sqrt()), sigma=column((1 - alpha_bar).sqrt()), t=t, scale=ones)

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """See `Objective.levels`; at most as many as there are timesteps."""
        check_spacing(spacing, tuple(SPACINGS), self.name)
        tables = self._tables()
        return [self._level(tables.alpha_bar_at(t), t) for t in SPACINGS[spacing](tables, steps)]

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """The noise itself (DDPM, Algorithm 2)."""
        return noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """See `Objective.target`."""
        if self.name == "v":
            return level.alpha * noise - level.sigma * x0
        return noise if self.name == "eps" else x0

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """min(SNR, gamma) on the error of x0, as it is on the error of the output (Hang et al. 2023, section 3.4)."""
        if not self.min_snr:
            return None
        snr = (level.alpha / level.sigma) ** 2
        capped = snr.clamp(max=self.min_snr)
        return {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}[self.name]

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """See `Objective.x0`."""
        if self.name == "v":
            return level.alpha * x - level.sigma * output
        return (x - level.sigma * output) / level.alpha if self.name == "eps" else output

    def variance_loss(
        self, output: torch.Tensor, v: torch.Tensor, *, x0: torch.Tensor, x: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """What teaches the learned variance v beside an eps that it leaves alone (IDDPM, Eq. 16); see `variance.py`."""
        assert self.name == "eps", "a learned variance needs the eps objective"
        return variance_loss(self._tables(t.device), output, v, x0=x0, x_t=x, t=t)

    def _tables(self, device: torch.device | None = None) -> NoiseTables:
        return noise_tables(self.schedule, self.num_timesteps, device)

    def _level(self, alpha_bar: float, t: int) -> Level[float]:
        return Level(alpha=math.sqrt(alpha_bar), sigma=math.sqrt(1 - alpha_bar), t=t, scale=1.0)
