"""The network predicts the noise (DDPM, Eq. 14), and its variance too if requested (IDDPM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.parts.vp import VariancePreserving
from corecli.diffusion.variance import variance_loss

SAMPLER = "ddim"
DIFFUSERS = "epsilon"
LEARNS_VARIANCE = True


@dataclass(frozen=True, kw_only=True)
class Eps(VariancePreserving):
    """The prediction of the noise."""

    name: ClassVar[str] = "eps"

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """Return the noise."""
        return noise

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """See `Objective.x0`."""
        return (x - level.sigma * output) / level.alpha

    def output_weight(self, weight: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
        """See `VariancePreserving.output_weight`."""
        return weight / snr

    def variance_loss(
        self, output: torch.Tensor, v: torch.Tensor, *, x0: torch.Tensor, x: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of the learned variance v (IDDPM, Eq. 16); give it the noise `output` without gradient."""
        return variance_loss(self.tables(t.device), output, v, x0=x0, x_t=x, t=t)


build = Eps
