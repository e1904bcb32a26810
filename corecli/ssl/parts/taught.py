"""What methods with a teacher share: it starts as the encoder and follows it."""

from __future__ import annotations

import torch
from torch import Tensor

from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Method, check_momentum, cosine_momentum, embed, follow, teacher_of


class TaughtMethod(Method):
    """A method whose teacher averages the encoder, with a momentum that rises by half a cosine.

    The teacher is in training mode: its BatchNorms use the statistics of its own batches and average them themselves.
    """

    teacher: Encoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, encoder: Encoder, *, momentum_start: float, momentum_end: float) -> None:
        """Errors: UsageError unless 0 <= momentum_start <= momentum_end <= 1."""
        check_momentum(momentum_start, momentum_end)
        super().__init__(encoder, teacher=teacher_of(encoder))
        self.momentum_start, self.momentum_end = momentum_start, momentum_end

    @torch.no_grad()
    def teach(self, views: tuple[Tensor, ...]) -> Tensor:
        """The teacher's projections of V views, [V, B, P], without gradient."""
        return embed(self.teacher, views)[1]

    def momentum(self, step: int, total_steps: int) -> float:
        """The momentum after `step` of `total_steps`."""
        return cosine_momentum(self.momentum_start, self.momentum_end, step, total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        follow(self.teacher, self.encoder, self.momentum(step, total_steps))
