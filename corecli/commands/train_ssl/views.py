"""The views of a batch, and the fixed pair of views by which alignment is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from corecli.base.rng import numpy_generator
from corecli.commands.train_ssl.stages import StageViews
from corecli.data.members import pairs
from corecli.data.pictures import Picture
from corecli.views.augment import Cuts, augment, draw, draw_colors, draw_cuts
from corecli.views.cutting import cut_views
from corecli.views.policies import Policy

Views = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class ViewCutter:
    """Cuts the views of a step out of images of any size; its colors follow in `color_views`.

    Parameters are those of `draw_views`, from (seed, step, view); first_step: step of the run where the stage starts.
    """

    shown: StageViews
    seed: int
    batch_size: int
    first_step: int = 0

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the global and the local views of an image."""
        kinds = ((self.shown.num_global, self.shown.policies[0]), (self.shown.num_local, self.shown.local_policy))
        return tuple((num, 3, policy.size or 0, policy.size or 0) for num, policy in kinds)

    def cut(self, pictures: list[list[Picture]], places: np.ndarray, step: int, into: Views) -> None:
        """Write the views of n images: for each a picture per entry, at `places` [n] of the global batch."""
        drawn = [cuts[places] for cuts in _draw_cuts(self.shown, self.seed, self.first_step + step, self.batch_size)]
        views = [view for kind in into for view in kind.unbind(1)]
        for entry, members in enumerate(zip(*pictures, strict=True)):
            chosen = _views_of(self.shown, entry)
            sizes = np.array([picture.size for picture in members], dtype=np.int64)
            boxes = [drawn[view].boxes(sizes) for view in chosen]
            for i, picture in enumerate(members):
                cuts = [(drawn[view], i) for view in chosen]
                cut_views(picture, cuts, [box[i] for box in boxes], [views[view][i] for view in chosen])


def color_views(
    shown: StageViews, cut: Views, rows: np.ndarray, *, seed: int, step: int, batch_size: int, compile: bool = False
) -> tuple[Views, Views]:
    """Return the views of a step as `draw_views` does, from views that a ViewCutter has cut.

    cut: uint8 [V, b, 3, h, w] of the global and of the local views.
    """
    views: list[torch.Tensor] = []
    policies = _all_policies(shown, seed, step)
    for view, (policy, images) in enumerate(zip(policies, (v for kind in cut for v in kind), strict=True)):
        drawn = draw_colors(policy, seed=seed, step=step, view=view, batch=batch_size)
        views.append(augment(images, drawn[rows], compile=compile))
    return tuple(views[: shown.num_global]), tuple(views[shown.num_global :])


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


@lru_cache(maxsize=2)  # a worker cuts a batch in several pieces
def _draw_cuts(shown: StageViews, seed: int, step: int, batch_size: int) -> list[Cuts]:
    policies = _all_policies(shown, seed, step)
    return [draw_cuts(p, seed=seed, step=step, view=view, batch=batch_size) for view, p in enumerate(policies)]


def _all_policies(shown: StageViews, seed: int, step: int) -> tuple[Policy, ...]:
    """Return the policies of the global views, then those of the local views."""
    return (*_policies_of(shown, seed, step), *[shown.local_policy] * shown.num_local)


def _views_of(shown: StageViews, entry: int) -> list[int]:
    """Return the numbers of the views that show an entry; global views come first."""
    before, one = shown.entries[:entry], shown.entries[entry]
    first = sum(other.num_global for other in before)
    first_local = shown.num_global + sum(other.num_local for other in before)
    return [*range(first, first + one.num_global), *range(first_local, first_local + one.num_local)]


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
