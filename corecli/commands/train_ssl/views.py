"""The views of a batch: each entry's crops of the member it shows, augmented as the method is used to."""

from __future__ import annotations

from dataclasses import replace

import torch

from corecli.base.rng import numpy_generator
from corecli.commands.train_ssl.plan import StagePlan
from corecli.data.members import pairs
from corecli.data.order import positions
from corecli.engine.dist import World
from corecli.views.augment import augment, draw
from corecli.views.policies import Policy

Views = tuple[torch.Tensor, ...]


class ViewMaker:
    """Makes the views of a stage; parameters are drawn for the global batch, and a rank applies its slice of them."""

    def __init__(
        self, stage: StagePlan, *, local_px: int, batch_size: int, parts: int, seed: int, compile: bool, world: World
    ) -> None:
        self._stage, self._batch_size, self._seed = stage, batch_size, seed
        self._compile = compile
        self._mine = positions(batch_size, rank=world.rank, world_size=world.size, parts=parts)
        self._local = replace(stage.local_policy, size=local_px)

    def make(self, step: int, images: torch.Tensor) -> tuple[Views, Views]:
        """Global and local views, float [b, 3, h, w] in [0, 1], of uint8 images [E, b, 3, H, W], one of each entry."""
        policies = self._policies_of(step)
        views, local_views = [], []
        for entry, members in zip(self._stage.entries, images, strict=True):
            for _ in range(entry.num_global):
                views.append(self._view(policies[len(views)], step, len(views), members))
            for _ in range(entry.num_local):
                index = self._stage.num_views + len(local_views)
                local_views.append(self._view(self._local, step, index, members))
        return tuple(views), tuple(local_views)

    def _policies_of(self, step: int) -> tuple[Policy, ...]:
        """The policy of each global view. Where views come from different members, the policies change places from step
        to step, so that how an image was augmented does not tell where it is from."""
        policies = self._stage.policies
        if not pairs(self._stage.entries):
            return policies
        first = int(numpy_generator(self._seed, "recipes", step).integers(len(policies)))
        return policies[first:] + policies[:first]

    def _view(self, policy: Policy, step: int, view: int, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        parameters = draw(
            policy, seed=self._seed, step=step, view=view, batch=self._batch_size, image_size=(height, width)
        )
        return augment(images, parameters[self._mine], compile=self._compile)


def pair_of_views(images: torch.Tensor, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """Two uint8 views of uint8 images [N, 3, H, W], the same ones whenever asked: to watch alignment by."""
    views = []
    for view in range(2):
        height, width = images.shape[-2:]
        parameters = draw(policy, seed=0, step=0, view=view, batch=len(images), image_size=(height, width))
        views.append(augment(images, parameters).mul(255).round().clamp(0, 255).to(torch.uint8))
    return views[0], views[1]
