"""Teachers: averaged copies of an encoder that methods compare it with."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder
from corecli.ssl.parts.method import Method, embed

M = TypeVar("M", bound=nn.Module)


class TaughtMethod(Method):
    """A method with a teacher that averages the encoder, with a momentum that rises by half a cosine.

    The teacher is in training mode: its BatchNorms use the statistics of its own batches and average them themselves.
    """

    teacher: Encoder  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, encoder: Encoder, *, momentum_start: float, momentum_end: float) -> None:
        """Copy the encoder. Errors: UsageError unless 0 <= momentum_start <= momentum_end <= 1."""
        check_momentum(momentum_start, momentum_end)
        super().__init__(encoder, teacher=teacher_of(encoder))
        self.momentum_start, self.momentum_end = momentum_start, momentum_end

    @torch.no_grad()
    def teach(self, views: tuple[Tensor, ...]) -> Tensor:
        """Return the teacher's projections of V views, [V, B, P], without gradient."""
        return embed(self.teacher, views)[1]

    def momentum(self, step: int, total_steps: int) -> float:
        """Return the momentum after `step` of `total_steps`."""
        return cosine_momentum(self.momentum_start, self.momentum_end, step, total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        follow(self.teacher, self.encoder, self.momentum(step, total_steps))


def teacher_of(student: M) -> M:
    """Return a copy of an encoder or a head for `follow` to average, without gradient and without forward hooks."""
    modules = list(student.modules())
    hooks = [m._forward_hooks for m in modules]
    for m in modules:
        m._forward_hooks = OrderedDict()
    try:
        teacher = copy.deepcopy(student).requires_grad_(False)
    finally:
        for m, kept in zip(modules, hooks, strict=True):
            m._forward_hooks = kept
    for m in teacher.modules():
        if hasattr(m, "drop_prob"):  # timm's DropPath: only the student skips branches (DINO; SynCLR)
            m.drop_prob = 0.0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set teacher to momentum * teacher + (1 - momentum) * student, parameters only; buffers are left alone."""
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]


def cosine_momentum(start: float, end: float, step: int, total_steps: int) -> float:
    """Return the momentum after `step` of `total_steps`, from start to end by half a cosine (BYOL, section 3.2)."""
    return end - (end - start) * (math.cos(math.pi * step / total_steps) + 1) / 2


def check_momentum(start: float, end: float) -> None:
    """Raise UsageError unless 0 <= start <= end <= 1."""
    if not 0 <= start <= end <= 1:
        raise UsageError(f"the momentum must satisfy 0 <= start <= end <= 1, not {start:g} and {end:g}")
