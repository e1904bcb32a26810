"""The network predicts the velocity v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.parts.vp import VariancePreserving

SAMPLER = "ddim"
DIFFUSERS = "v_prediction"


@dataclass(frozen=True, kw_only=True)
class V(VariancePreserving):
    """The prediction of the velocity."""

    name: ClassVar[str] = "v"

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """Return the velocity."""
        return level.alpha * noise - level.sigma * x0

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """See `Objective.x0`."""
        return level.alpha * x - level.sigma * output

    def output_weight(self, weight: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
        """See `VariancePreserving.output_weight`."""
        return weight / (snr + 1)


build = V
