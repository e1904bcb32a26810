"""What trains a generator: its optimizer, the moving average of its weights, and the state that a run saves.

Most families have one network and one loss; `train-gen` shows their training step, and `Learner` holds what the step
needs. A family with more networks defines `learner(generator, options, world)` in its own file, which returns an
`OwnStepLearner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from corecli.engine import optim
from corecli.engine.ema import EMA
from corecli.engine.power_ema import PowerEMA
from corecli.engine.run import Tensors, merge, split


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train: AdamW at a constant learning rate.

    clip: maximum gradient norm, 0 for no limit. precision: as in `engine.precision`.
    ema: the average that is published: "exponential" with `ema_decay`, or "power", whose length can be chosen later.
    """

    lr: float = 1e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: str = "exponential"
    ema_decay: float = 0.9999
    precision: str = "auto"


class Learner:
    """The optimizer of a generator and the moving average of its weights."""

    def __init__(self, generator: Any, options: TrainOptions) -> None:
        self.generator = generator
        weights = generator.parameters()
        self.optimizer = optim.build_optimizer("adamw", weights, lr=options.lr, weight_decay=options.weight_decay)
        power = options.ema == "power"
        self.ema: EMA | PowerEMA = PowerEMA(generator) if power else EMA(generator, decay=options.ema_decay)

    @property
    def average(self) -> nn.Module:
        """The generator with averaged weights: what is published and previewed."""
        return self.ema.module

    def state(self) -> Tensors:
        """Return everything that training changes, by name."""
        return merge(
            generator=self.generator.state_dict(),
            optimizer=optim.optimizer_tensors(self.optimizer),
            ema=self.ema.state(),
        )

    def restore(self, tensors: Tensors, step: int) -> None:
        """Restore what `state` returned; `step` is unused."""
        parts = split(tensors)
        self.generator.load_state_dict(parts["generator"])
        optim.restore_optimizer(self.optimizer, parts["optimizer"])
        self.ema.restore(parts["ema"])


class OwnStepLearner(Protocol):
    """What trains a generator whose training step has more than one network or loss."""

    @property
    def average(self) -> nn.Module:
        """See `Learner.average`."""
        ...

    def learn(self, images: Tensor, condition: Tensor | None, draws: Any) -> Tensors:
        """Take one step on this rank's part of the batch; return named scalars to log, `loss` among them."""
        ...

    def state(self) -> Tensors:
        """See `Learner.state`."""
        ...

    def restore(self, tensors: Tensors, step: int) -> None:
        """See `Learner.restore`."""
        ...
