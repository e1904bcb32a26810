"""What a diffusion network learns: the common form of every objective, its loss in float32, and the draws it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F

from corecli.base.rng import derive, torch_generator
from corecli.diffusion.levels import Level
from corecli.diffusion.vp import VariancePreserving

Told = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # a network that knows its condition: (x, t [B]) -> output


class Objective(Protocol):
    """A noising process, and what the network's output means on it.

    name: as the user gives it. sampler: that samples unless told, in its own number of steps.
    spacing: how levels are spaced unless told, None where each sampler has its own way.
    clips: whether samplers clip x0 to [-1, 1] on pixels. latent_scale: what latents of unit std are multiplied by.
    """

    sampler: ClassVar[str]
    spacing: ClassVar[str | None]
    clips: ClassVar[bool]
    latent_scale: ClassVar[float]

    @property
    def name(self) -> str: ...

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Where on the process B images are trained, [B], for `at`."""
        ...

    def at(self, t: torch.Tensor) -> Level[torch.Tensor]:
        """The noise levels of what `draw` gave."""
        ...

    def levels(self, spacing: str, steps: int) -> list[Level[float]]:
        """The levels that a sampler of N steps visits, the noisiest first. Errors: UsageError."""
        ...

    def start(self, noise: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """Where sampling begins: standard normal noise as an x of the first level."""
        ...

    def target(self, x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
        """What the output [B, C, H, W] should be."""
        ...

    def weight(self, level: Level[torch.Tensor]) -> torch.Tensor | None:
        """The weight of each image's squared error, [B, 1, 1, 1]; None for 1."""
        ...

    def x0(self, output: torch.Tensor, x: torch.Tensor, level: Level[float]) -> torch.Tensor:
        """The estimate of the clean image that an output for x stands for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random part of a training step for B images; `draws[a:b]` is the part of some of them.

    t: [B], what the objective's `draw` gave; noise: [B, C, H, W]; flip: [B] bool; drop: [B] uniform in [0, 1), to
    compare with a probability; condition_noise: [B, D] and posterior_noise: [B, C, H, W], each [B, 0] where not
    wanted; seed: for what the network draws itself, its dropout, the one thing that differs with the number of ranks.
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
        """The same draws on a device."""
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
    """The draws of a global batch, on the CPU, as a function of (seed, step) alone; slice them by rank.

    draws_posterior: the data are distributions, as a first stage gives them, of which each step takes a sample.
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
    objective: Objective, network: Told, x0: torch.Tensor, *, t: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The mean weighted squared error of the network's output, and the variance's loss where it gives one; scalar."""
    level = objective.at(t)
    x = noised(x0, noise, level)
    output, v = split(network(level.scale * x, level.t).float(), x0.shape[1])
    target, weight = objective.target(x0, noise, level), objective.weight(level)
    loss = F.mse_loss(output, target) if weight is None else (weight * (output - target) ** 2).mean()
    if v is None:
        return loss
    assert isinstance(objective, VariancePreserving), "a learned variance needs the eps objective"
    return loss + objective.variance_loss(output.detach(), v, x0=x0, x=x, t=t)


def noised(x0: torch.Tensor, noise: torch.Tensor, level: Level[torch.Tensor]) -> torch.Tensor:
    """x = alpha x0 + sigma noise, [B, C, H, W]."""
    return level.alpha * x0 + level.sigma * noise


def split(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(prediction, v) of a network's output [B, C or 2C, H, W]; v is None where no variance is learned."""
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None
