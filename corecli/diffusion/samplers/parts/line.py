"""The probability-flow ODE in coordinates in which its solutions are straight lines while x0 and eps stay the same.

With c = 0, z = x / alpha and tau = sigma / alpha (EDM, Eq. 4). If the levels start at pure noise, where alpha is 0,
c = 1: z = x / (alpha + sigma) and tau = sigma / (alpha + sigma), which are x and t of a rectified flow. In both cases
z = (1 - c tau) x0 + tau eps, and dz / dtau = eps - c x0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level


@dataclass(frozen=True, kw_only=True)
class Line:
    """The coordinates for a list of levels, and the ODE's slope in them."""

    c: float

    @classmethod
    def of(cls, levels: list[Level[float]]) -> Line:
        """Return the coordinates that are finite at every level."""
        return cls(c=0.0 if levels[0].alpha > 0 else 1.0)

    def norm(self, level: Level[float]) -> float:
        """Return x / z."""
        return level.alpha + self.c * level.sigma

    def tau(self, level: Level[float]) -> float:
        """Return the position of a level on the line; it is 0 for the clean image."""
        return level.sigma / self.norm(level)

    def slope(self, predict: Predict, z: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return dz / dtau; the network runs once."""
        x = self.norm(level) * z
        x0 = predict(x, level).x0
        return (x - level.alpha * x0) / level.sigma - self.c * x0
