"""The interface of objectives."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch

from corecli.diffusion.levels import Level


class Objective(Protocol):
    """A noising process, and the meaning of the network's output on it.

    name: the objective's name on the command line.
    spacing: how levels are spaced by default; None leaves it to the sampler.
    clips: whether x0 is clipped to [-1, 1] when sampling pixels.
    latent_scale: the factor for latents of unit standard deviation.
    """

    name: ClassVar[str]
    spacing: ClassVar[str | None]
    clips: ClassVar[bool]
    latent_scale: ClassVar[float]

    @property
    def max_steps(self) -> int | None:
        """Return the largest number of sampling steps, None if there is no limit."""
        ...

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the times [B] at which B images are trained, for `at`."""
        ...

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """Return the noise levels of times that `draw` returned."""
        ...

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """Return the levels that a sampler visits in N steps, the noisiest first. Errors: UsageError."""
        ...

    def level_at(self, sigma: float) -> Level[float]:
        """Return the level with any noise ratio sigma / alpha = `sigma`, above 0 and finite."""
        ...

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the x at the first level with which sampling starts, from standard normal noise."""
        ...

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """Return the target of the network's output, [B, C, H, W]."""
        ...

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """Return the weight of each image's squared error, [B, 1, 1, 1]; None means 1."""
        ...

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Return the estimate of the clean image that follows from the network's output for x."""
        ...
