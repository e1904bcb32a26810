"""How a generator learns: its optimizers and the moving average of its weights.

Most families have one network and one loss, for which `OneLossLearner` serves; one with more, such as a GAN, brings
`learner(generator, recipe, world)` in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from corecli.engine import optim
from corecli.engine.dist import World, average_gradients
from corecli.engine.ema import EMA
from corecli.engine.power_ema import PowerEMA
from corecli.engine.precision import autocast
from corecli.engine.run import Tensors, merge, split


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: AdamW at a constant rate; clip: largest gradient norm, 0 for any; precision: of `autocast`.

    ema: the average that is published, "exponential" with `ema_decay`, or "power", from which other lengths can be had.
    """

    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: str = "exponential"
    ema_decay: float = 0.9999
    precision: str = "auto"


class Learner(Protocol):
    """What trains a generator, step by step."""

    @property
    def average(self) -> nn.Module:
        """The generator with averaged weights: what is published and previewed."""
        ...

    def learn(self, x: Tensor, condition: Tensor | None, draws: Any) -> Tensors:
        """One step on this rank's part of the global batch; named scalars to log, `loss` among them."""
        ...

    def state(self) -> Tensors:
        """Everything that changes, by name."""
        ...

    def restore(self, tensors: Tensors) -> None:
        """Take back what `state` gave."""
        ...


class OneLossLearner:
    """One optimizer on `generator.loss`."""

    def __init__(self, generator: Any, recipe: Recipe, world: World) -> None:
        self.generator, self.recipe, self.world = generator, recipe, world
        self.optimizer = optim.build_optimizer(
            "adamw", generator.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        power = recipe.ema == "power"
        self.ema: EMA | PowerEMA = PowerEMA(generator) if power else EMA(generator, decay=recipe.ema_decay)

    @property
    def average(self) -> nn.Module:
        return self.ema.module

    def learn(self, x: Tensor, condition: Tensor | None, draws: Any) -> Tensors:
        with autocast(self.recipe.precision, self.world.device):
            loss = self.generator.loss(x, condition, draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.generator.parameters(), self.world)
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.recipe.clip, foreach=True)
        self.optimizer.step()
        self.ema.update(self.generator)
        return {"loss": loss.detach()}

    def state(self) -> Tensors:
        return merge(
            generator=self.generator.state_dict(),
            optimizer=optim.optimizer_tensors(self.optimizer),
            ema=self.ema.state(),
        )

    def restore(self, tensors: Tensors) -> None:
        parts = split(tensors)
        self.generator.load_state_dict(parts["generator"])
        optim.restore_optimizer(self.optimizer, parts["optimizer"])
        self.ema.restore(parts["ema"])
