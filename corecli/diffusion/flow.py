"""Rectified flow: the velocity on the straight line from an image to noise (Liu et al. 2023; Lipman et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.base.errors import unknown_name
from corecli.diffusion.levels import Level, check_spacing, check_steps, column

TIME_SCALE = 1000  # what t in [0, 1] is multiplied by for the network, whose time embedding is made for timesteps


@dataclass(frozen=True, kw_only=True)
class Flow:
    """An Objective (see `objectives.py`) with alpha = 1 - t and sigma = t; the target is dx/dt = noise - x0.

    times: how t is drawn in training, "uniform" in [0, 1) or "logit-normal", a standard normal through the sigmoid,
    which prefers the middle (Esser et al. 2024, Eq. 19). Errors: UsageError for others.
    """

    name: str = "flow"
    times: str = "uniform"

    sampler: ClassVar[str] = "heun"
    spacing: ClassVar[str | None] = "even"
    clips: ClassVar[bool] = False
    latent_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.times not in TIMES:
            raise unknown_name("distribution of flow times", self.times, TIMES)

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """t, float32."""
        return TIMES[self.times](batch, generator)

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """See `Objective.at`; t: [B] in [0, 1]."""
        sigma = column(t)
        return Level(alpha=1 - sigma, sigma=sigma, t=TIME_SCALE * t, scale=torch.ones((), device=t.device))

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """t = i / N from 1 down, "even" being the one spacing."""
        check_spacing(spacing, ("even",), self.name)
        check_steps(steps)
        times = (i / steps for i in range(steps, 0, -1))
        return [Level(alpha=1 - t, sigma=t, t=TIME_SCALE * t, scale=1.0) for t in times]

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """The noise itself."""
        return noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """The velocity, the same all along the line."""
        return noise - x0

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """None: the velocity's plain squared error."""
        return None

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Back along the line to its end."""
        return x - level.sigma * output


def uniform(batch: int, generator: torch.Generator) -> torch.Tensor:
    """[B] even in [0, 1)."""
    return torch.rand(batch, generator=generator)


def logit_normal(batch: int, generator: torch.Generator) -> torch.Tensor:
    """[B] in (0, 1), most near 1/2."""
    return torch.randn(batch, generator=generator).sigmoid()


TIMES = {"uniform": uniform, "logit-normal": logit_normal}
