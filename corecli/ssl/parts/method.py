"""What a method is: a loss of the views of a batch.

A file of `corecli/ssl/` is a method. It defines `build(encoder, *, options, context)`, which returns the method, and
constants that are read without importing the file:

- `Options`: a dataclass with the method's own options and their defaults (`--set`);
- `VIEWS`: the default of --views;
- `AUGMENT`: the default of --augment;
- `PROJECTOR`: the published projector, or None for a method that trains none;
- `PROJECTOR_VIT`: the projector of a ViT, where it differs (optional);
- `TINY`: options of `train-ssl`, as in a preset, that make the method small enough for tests (optional).

`loss` returns the share of this process: the mean over ranks is the loss of the global batch (`engine.dist`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder

Needs = Literal["nothing", "labels", "features"]
Published = Literal["student", "teacher"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of this process in a step, on its device.

    views: the global views, float [B, 3, H, W] in [0, 1]; local_views: the local views [B, 3, h, w]; labels: int64 [B],
    -1 where unknown; groups: int64 [B], equal within a group; targets: float [B, D], rows of a feature table, for
    methods that need features; step, total_steps: the position in the stage; part: the index of the part with
    --accumulate.
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
class Context:
    """What a method knows about its run when it is built.

    batch_size: images of the global batch, or of each part with --accumulate; num_classes: 0 without labels;
    target_dim: dimension of the feature table, None without one; steps_per_epoch: full batches of an epoch; seed: of
    the weights that the method adds to the encoder's.
    """

    num_views: int = 2
    num_local_views: int = 0
    batch_size: int = 1
    num_classes: int = 0
    target_dim: int | None = None
    steps_per_epoch: int = 1
    seed: int = 0


class Method(nn.Module):
    """An encoder, the modules trained with it, and the loss. Subclasses override what differs.

    needs: what must come with the images. teacher: an averaged copy of the encoder, or None. publishes: the network
    that the method's authors evaluate, which `train-ssl` writes by default. accumulates: whether --accumulate is
    possible; `after_step` sees the last part only. notes: warnings to print before training.
    """

    needs: Needs = "nothing"
    publishes: Published = "student"
    accumulates: bool = True
    notes: tuple[str, ...] = ()

    def __init__(self, encoder: Encoder, *, teacher: Encoder | None = None) -> None:
        super().__init__()
        self.encoder, self.teacher = encoder, teacher

    def loss(self, batch: Batch) -> Tensor:
        """Return the share of this process in the loss of the step, a scalar with gradient."""
        raise NotImplementedError

    def after_step(self, step: int, total_steps: int) -> None:
        """Update averages and queues; called after the optimizer's step."""

    def constant_rate(self) -> Iterable[nn.Parameter]:
        """Return the parameters whose learning rate stays at its peak whatever the schedule."""
        return ()


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Return `num_parts` consecutive parts of a batch, of equal size."""
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


def embed(encoder: Encoder, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return features [V, B, D] and projections [V, B, P] of V views, each [B, 3, H, W], in one forward pass.

    BatchNorm's statistics are therefore those of all views together, as in the code of SimCLR and in lightly;
    solo-learn computes them view by view.
    """
    h, z = encoder(torch.cat(views))
    shape = (len(views), len(views[0]))
    return h.unflatten(0, shape), z.unflatten(0, shape)


def check_views(context: Context, *, method: str, views: tuple[int, ...], local_views: bool = False) -> None:
    """Raise UsageError unless the number of global views is in `views`, and local views are absent or allowed."""
    if context.num_views not in views:
        wanted = " or ".join(map(str, views))
        raise UsageError(f"{method} takes {wanted} global views, not {context.num_views}", hint="change --views")
    if context.num_local_views and not local_views:
        raise UsageError(f"{method} takes no local views", hint="change --views")


def check_temperature(temperature: float) -> None:
    """Raise UsageError unless it is above 0."""
    if not temperature > 0:
        raise UsageError(f"the temperature must be above 0, not {temperature:g}")
