"""The views of a batch, and the fixed pair of views by which alignment is measured."""

from __future__ import annotations

import numpy as np
import torch

from corecli.base.rng import numpy_generator
from corecli.commands.train_ssl.stages import StageViews
from corecli.data.members import pairs
from corecli.views.augment import augment, draw
from corecli.views.policies import Policy

Views = tuple[torch.Tensor, ...]


def draw_views(
    shown: StageViews,
    images: torch.Tensor,
    rows: np.ndarray,
    *,
    seed: int,
    step: int,
    batch_size: int,
    compile: bool = False,
) -> tuple[Views, Views]:
    """Return the global and the local views of a step, float [b, 3, h, w] in [0, 1].

    images: uint8 [E, b, 3, H, W], one member for each entry; rows: int64 [b], their positions in the global batch of
    `batch_size`. Parameters are drawn for the global batch from (seed, step, view).
    """
    height, width = images.shape[-2:]

    def view(policy: Policy, index: int, members: torch.Tensor) -> torch.Tensor:
        drawn = draw(policy, seed=seed, step=step, view=index, batch=batch_size, image_size=(height, width))
        return augment(members, drawn[rows], compile=compile)

    policies = _policies_of(shown, seed, step)
    views: list[torch.Tensor] = []
    local_views: list[torch.Tensor] = []
    for entry, members in zip(shown.entries, images, strict=True):
        for _ in range(entry.num_global):
            views.append(view(policies[len(views)], len(views), members))
        for _ in range(entry.num_local):
            local_views.append(view(shown.local_policy, shown.num_global + len(local_views), members))
    return tuple(views), tuple(local_views)


def _policies_of(shown: StageViews, seed: int, step: int) -> tuple[Policy, ...]:
    """Return the policy of each global view.

    When the views show different members, the policies rotate from step to step, so that the augmentation does not
    reveal the origin of an image.
    """
    if not pairs(shown.entries):
        return shown.policies
    # The tag decides the draw, so it keeps its old name.
    first = int(numpy_generator(seed, "recipes", step).integers(len(shown.policies)))
    return shown.policies[first:] + shown.policies[:first]


def pair_of_views(images: torch.Tensor, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two uint8 views of uint8 images [N, 3, H, W], the same in every call."""
    views = []
    for view in range(2):
        height, width = images.shape[-2:]
        parameters = draw(policy, seed=0, step=0, view=view, batch=len(images), image_size=(height, width))
        views.append(augment(images, parameters).mul(255).round().clamp(0, 255).to(torch.uint8))
    return views[0], views[1]
