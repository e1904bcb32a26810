"""The network predicts noise minus image on the variance-preserving process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.parts.vp import VariancePreserving

SAMPLER = "heun"


@dataclass(frozen=True, kw_only=True)
class Difference(VariancePreserving):
    name: ClassVar[str] = "toy-objective"

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        return noise - x0

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        return (x - level.sigma * output) / (level.alpha + level.sigma)

    def output_weight(self, weight: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
        return weight / (1 + snr.sqrt()) ** 2


build = Difference
