"""What a method is: the views it wants of a batch, and a loss of them.

One file of this folder is one method. It holds `build(encoder, *, options, task)`, which returns it, and what can be
told without importing it: `Options`, a dataclass whose fields are its own options with their defaults (`--set`);
`VIEWS`, the views it takes unless --views says otherwise; `AUGMENT`, their augmentation; and `PROJECTOR`, the projector
it was published with, None for a method that has none, and `PROJECTOR_VIT` where a ViT has another.

`loss` is this process's share; the mean over ranks is the loss of the global batch (`engine.dist`).
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder

Needs = Literal["nothing", "labels", "features"]
Published = Literal["student", "teacher"]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's rows of a step, on its device.

    views: the global views, float [B, 3, H, W] in [0, 1]; local_views: smaller ones [B, 3, h, w]; labels: int64 [B],
    -1 unknown; groups: int64 [B], equal for members of one group; targets: float [B, D], the rows of a feature table,
    for methods that need features; step, total_steps: where in its stage the method is; part: which of the parts that
    the batch of a step is worked off in.
    """

    views: tuple[Tensor, ...]
    local_views: tuple[Tensor, ...] = ()
    labels: Tensor
    groups: Tensor
    targets: Tensor | None = None
    step: int = 0
    total_steps: int = 1
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the data and the run decide for a method.

    batch_size: of the global batch, or of each of its parts; num_classes: 0 without labels; target_dim: of the feature
    table, None without one; steps_per_epoch: full batches of an epoch; seed: of the weights that a method adds to the
    encoder's.
    """

    num_views: int = 2
    num_local_views: int = 0
    batch_size: int = 1
    num_classes: int = 0
    target_dim: int | None = None
    steps_per_epoch: int = 1
    seed: int = 0


class Method(nn.Module):
    """The encoder that learns, whatever else is trained with it, and the loss. A subclass overrides what differs.

    needs: what the images must come with. teacher: an averaged copy of the encoder, where the method has one.
    publishes: which of the two its authors evaluate, and `train-ssl` writes unless --export says otherwise.
    accumulates: whether a batch may be worked off in parts, of which `after_step` sees the last. notes: what is worth
    a warning before training starts.
    """

    needs: Needs = "nothing"
    publishes: Published = "student"
    accumulates: bool = True
    notes: tuple[str, ...] = ()

    def __init__(self, encoder: Encoder, *, teacher: Encoder | None = None) -> None:
        super().__init__()
        self.encoder, self.teacher = encoder, teacher

    def loss(self, batch: Batch) -> Tensor:
        """The share of this process in the loss of the step, a scalar with gradient."""
        raise NotImplementedError

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after the optimizer's step: moving averages, queues."""

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """Parameters whose learning rate stays at its peak whatever the schedule."""
        return ()


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Consecutive parts of a batch."""
    size = len(batch.labels) // num_parts
    return [_part_of(batch, part, slice(part * size, (part + 1) * size)) for part in range(num_parts)]


def _part_of(batch: Batch, part: int, rows: slice) -> Batch:
    return replace(
        batch,
        views=tuple(view[rows] for view in batch.views),
        local_views=tuple(view[rows] for view in batch.local_views),
        labels=batch.labels[rows],
        groups=batch.groups[rows],
        targets=None if batch.targets is None else batch.targets[rows],
        part=part,
    )


def check_views(task: Task, *, method: str, views: tuple[int, ...], local_views: bool = False) -> None:
    """Refuse views a method cannot take: `views` are the numbers of global ones it can. Errors: UsageError."""
    if task.num_views not in views:
        wanted = " or ".join(map(str, views))
        raise UsageError(f"{method} takes {wanted} global views, not {task.num_views}", hint="change --views")
    if task.num_local_views and not local_views:
        raise UsageError(f"{method} takes no local views", hint="change --views")


def check_temperature(temperature: float) -> None:
    """Errors: UsageError unless it is above 0."""
    if not temperature > 0:
        raise UsageError(f"the temperature must be above 0, not {temperature:g}")


def check_momentum(start: float, end: float) -> None:
    """Errors: UsageError unless 0 <= start <= end <= 1."""
    if not 0 <= start <= end <= 1:
        raise UsageError(f"the teacher's momentum goes from 0 to 1, not {start:g} to {end:g}")


def embed(encoder: Encoder, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """V views of one size, each [B, 3, H, W] -> (h [V, B, D], z [V, B, P]), in one forward pass.

    BatchNorm's statistics are therefore those of all views together, as in SimCLR's own code and lightly's; solo-learn
    takes them view by view.
    """
    h, z = encoder(torch.cat(views))
    shape = (len(views), len(views[0]))
    return h.unflatten(0, shape), z.unflatten(0, shape)


def teacher_of(student: M) -> M:
    """A copy of an encoder, or of a head, to be moved by `follow`: without gradient, and nobody listens on it."""
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
        if hasattr(m, "drop_prob"):  # timm's DropPath: the student alone skips branches (DINO; SynCLR)
            m.drop_prob = 0.0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return teacher


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, parameters only: BatchNorms run statistics of their own."""
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]


def cosine_momentum(start: float, end: float, step: int, total_steps: int) -> float:
    """The momentum after `step` of `total_steps`, from start to end by half a cosine (BYOL, section 3.2)."""
    return end - (end - start) * (math.cos(math.pi * step / total_steps) + 1) / 2
