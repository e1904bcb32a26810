"""Rectified flow: the velocity on the straight line from an image to noise (Liu et al. 2023; Lipman et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.base.errors import unknown_name
from corecli.diffusion.levels import Level, check_spacing, check_steps, column

SAMPLER, SPACING = "heun", "even"
TIME_SCALE = 1000  # the network sees 1000 t, since its time embedding is made for timesteps


@dataclass(frozen=True, kw_only=True)
class Flow:
    """An Objective with alpha = 1 - t and sigma = t, whose target is dx/dt = noise - x0.

    flow_times: distribution of t in training: "uniform" in [0, 1), or "logit-normal", the sigmoid of a standard normal,
    which prefers the middle (Esser et al. 2024, Eq. 19). Errors: UsageError for others.
    """

    flow_times: str = "uniform"

    name: ClassVar[str] = "flow"
    spacing: ClassVar[str | None] = SPACING
    clips: ClassVar[bool] = False
    latent_scale: ClassVar[float] = 1.0
    max_steps: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.flow_times not in TIMES:
            raise unknown_name("distribution of flow times", self.flow_times, TIMES)

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Draw t, float32 [B]."""
        return TIMES[self.flow_times](batch, generator)

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """See `Objective.at`; t: [B] in [0, 1]."""
        sigma = column(t)
        return Level(alpha=1 - sigma, sigma=sigma, t=TIME_SCALE * t, scale=torch.ones((), device=t.device))

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """Return t = i / N from 1 down; "even" is the only spacing."""
        check_spacing(spacing, ("even",), self.name)
        check_steps(steps)
        return [_level(i / steps) for i in range(steps, 0, -1)]

    def level_at(self, sigma: float) -> Level[float]:
        """See `Objective.level_at`."""
        return _level(sigma / (1 + sigma))

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the noise itself."""
        return noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """Return the velocity, which is constant along the line."""
        return noise - x0

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """Return None: the loss is the plain squared error of the velocity."""
        return None

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the clean end of the line."""
        return x - level.sigma * output


def uniform(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Draw [B] uniformly from [0, 1)."""
    return torch.rand(batch, generator=generator)


def logit_normal(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Draw [B] from (0, 1), mostly near 1/2."""
    return torch.randn(batch, generator=generator).sigmoid()


def _level(t: float) -> Level[float]:
    return Level(alpha=1 - t, sigma=t, t=TIME_SCALE * t, scale=1.0)


TIMES = {"uniform": uniform, "logit-normal": logit_normal}
build = Flow
