"""The network predicts the clean image (DDPM, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.parts.vp import VariancePreserving

SAMPLER = "ddim"
DIFFUSERS = "sample"


@dataclass(frozen=True, kw_only=True)
class X0(VariancePreserving):
    """The prediction of the clean image."""

    name: ClassVar[str] = "x0"

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """Return the image."""
        return x0

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the output."""
        return output

    def output_weight(self, weight: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
        """See `VariancePreserving.output_weight`."""
        return weight


build = X0
