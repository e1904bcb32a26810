"""One training step of a diffusion network: its random draws, and its loss in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

from corecli.base.rng import derive, torch_generator
from corecli.diffusion.levels import Level
from corecli.diffusion.objectives.parts.objective import Objective

Conditioned = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # a network and its condition: (x, t [B]) -> output


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random numbers of a training step on B images; `draws[a:b]` is the part for some of the images.

    t: [B], from the objective's `draw`; noise: [B, C, H, W]; flip: bool [B]; drop: [B], uniform in [0, 1), to compare
    with a probability; condition_noise: [B, D]; posterior_noise: [B, C, H, W]; both are [B, 0] if not needed.
    seed: seed of the network's own draws (dropout), the only part that depends on the number of processes.
    """

    t: torch.Tensor
    noise: torch.Tensor
    flip: torch.Tensor
    drop: torch.Tensor
    condition_noise: torch.Tensor
    posterior_noise: torch.Tensor
    seed: int

    def __getitem__(self, rows: slice) -> Draws:
        seed = derive(self.seed, rows.start or 0)
        return Draws(**{name: tensor[rows] for name, tensor in self._tensors()}, seed=seed)

    def to(self, device: torch.device) -> Draws:
        """Return the same draws on a device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors()}
        return Draws(**moved, seed=self.seed)

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "seed"]


def draw(
    objective: Objective,
    seed: int,
    step: int,
    *,
    batch: int,
    shape: tuple[int, int, int],
    condition_dim: int = 0,
    draws_posterior: bool = False,
) -> Draws:
    """Draw for a global batch, on the CPU, as a function of (seed, step) alone; slice the result for each process.

    draws_posterior: whether the data are distributions, as a first stage returns them, to be sampled in each step.
    """
    generator = torch_generator(seed, "diffusion", step)
    return Draws(
        t=objective.draw(batch, generator),
        noise=torch.randn(batch, *shape, generator=generator),
        flip=torch.rand(batch, generator=generator) < 0.5,
        drop=torch.rand(batch, generator=generator),
        condition_noise=torch.randn(batch, condition_dim, generator=generator),
        posterior_noise=torch.randn(batch, *(shape if draws_posterior else (0,)), generator=generator),
        seed=derive(seed, "network", step),
    )


def training_loss(
    objective: Objective, network: Conditioned, x0: torch.Tensor, *, t: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Return the mean weighted squared error of the network's output, plus the loss of a learned variance; scalar."""
    level = objective.at(t)
    x = noised(x0, noise, level)
    output, v = split(network(level.scale * x, level.t).float(), x0.shape[1])
    target, weight = objective.target(x0, noise, level), objective.weight(level)
    loss = F.mse_loss(output, target) if weight is None else (weight * (output - target) ** 2).mean()
    if v is None:
        return loss
    learns: Any = objective  # one whose file says LEARNS_VARIANCE
    return loss + learns.variance_loss(output.detach(), v, x0=x0, x=x, t=t)


def noised(x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
    """Return x = alpha x0 + sigma noise, [B, C, H, W]."""
    return level.alpha * x0 + level.sigma * noise


def split(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Split a network's output [B, C or 2C, H, W] into (prediction, v); v is None without a learned variance."""
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None
