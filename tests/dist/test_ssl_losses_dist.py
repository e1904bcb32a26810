"""Losses of a batch split over two processes have the values and gradients of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from corecli.engine.dist import World, average_gradients, gather_with_gradient, mean_over_ranks
from corecli.ssl.parts.losses import barlow_twins, byol_distance, info_nce_queue, moco_v3, negative_cosine
from corecli.ssl.parts.multi_positive import multi_positive, places, supervised_contrastive
from corecli.ssl.parts.prototypes import dino, ibot, next_center, sinkhorn_knopp

NUM, DIM = 8, 5
Views = list[Tensor]
# With three views or one; in the latter, two of rank 0's labels are alone and all of rank 1's have a partner.
LABELS = torch.tensor([0, 1, 2, 3, 2, 4, 4, 2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slice_of(world: World) -> slice:
    num = NUM // world.size
    return slice(world.rank * num, (world.rank + 1) * num)


def to_teacher(z: Views, labels: Tensor, *, own: bool) -> Tensor:
    keys, theirs = gather_with_gradient(z[1].detach()), gather_with_gradient(labels)
    return multi_positive(z[0], keys, labels, theirs, temperature=0.2, itself=places(labels) if own else None)


LOSSES: dict[str, Callable[[Views, Tensor], Tensor]] = {
    "info_nce_queue": lambda z, _: info_nce_queue(
        z[0], z[1], nn.functional.normalize(draw(6, DIM, seed=8)), temperature=0.2
    ),
    "moco_v3": lambda z, _: moco_v3(z[0], z[1], temperature=0.2),
    "supervised_contrastive": lambda z, labels: supervised_contrastive(torch.stack(z), labels, temperature=0.2),
    "supervised_contrastive of one view": lambda z, labels: supervised_contrastive(z[0][None], labels, temperature=0.2),
    "multi_positive": lambda z, labels: to_teacher(z, labels, own=False),
    "multi_positive without itself": lambda z, labels: to_teacher(z, labels, own=True),
    "byol_distance": lambda z, _: byol_distance(z[0], z[1]),
    "negative_cosine": lambda z, _: negative_cosine(z[0], z[1]),
    "barlow_twins": lambda z, _: barlow_twins(z[0], z[1], off_diagonal=0.005),
    "barlow_twins, all terms alike": lambda z, _: barlow_twins(z[0], z[1], off_diagonal=1.0),
    "dino": lambda z, _: dino(
        z, [v + 1 for v in z[:2]], center=draw(DIM, seed=9), student_temperature=0.1, teacher_temperature=0.04
    ),
}


def computed(world: World, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(global loss, gradient of a shared weight) on linear embeddings of this rank's rows."""
    weight, mine = nn.Parameter(draw(6, DIM, seed=3).to(dtype)), slice_of(world)
    views = [draw(NUM, 6, seed=s).to(dtype)[mine] @ weight for s in (1, 2, 4)]
    loss = LOSSES[name](views, LABELS[mine])
    loss.backward()
    average_gradients([weight], world)
    assert weight.grad is not None
    return mean_over_ranks(loss), weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_give_the_value_and_gradient_of_one(
    name: str, dtype: torch.dtype, tolerance: float, two_ranks: Any
) -> None:
    value, gradient = computed(World(), name, dtype)
    assert gradient.norm() > 1e-3
    for found in two_ranks.run(computed, name, dtype):
        torch.testing.assert_close(found[0], value, rtol=tolerance, atol=0)
        assert (found[1] - gradient).norm() <= tolerance * gradient.norm()


def centered(world: World) -> Tensor:
    teacher = [draw(NUM, DIM, seed=s)[slice_of(world)] for s in (1, 2)]
    return next_center(draw(DIM, seed=9), teacher, momentum=0.9)


def test_the_center_is_that_of_the_global_batch(two_ranks: Any) -> None:
    expected = 0.9 * draw(DIM, seed=9) + 0.1 * (draw(NUM, DIM, seed=1) + draw(NUM, DIM, seed=2)).mean(dim=0) / 2
    for found in (centered(World()), *two_ranks.run(centered)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def of_patches(world: World, dtype: torch.dtype, masked: list[int]) -> tuple[Tensor, Tensor]:
    """(global patch loss, gradient of a shared weight) where images `masked` of the batch have patches."""
    weight, mine = nn.Parameter(draw(6, DIM, seed=3).to(dtype)), slice_of(world)
    chosen = [i - mine.start for i in masked if mine.start <= i < mine.stop]
    patches = draw(NUM, 3, 6, seed=1).to(dtype)[mine][chosen].flatten(0, 1)
    shares = sinkhorn_knopp(2 * patches @ draw(6, DIM, seed=4).to(dtype), temperature=0.07)
    loss = ibot(patches @ weight, shares, temperature=0.1)
    loss.backward()
    average_gradients([weight], world)
    assert weight.grad is not None
    return mean_over_ranks(loss), weight.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=str)
@pytest.mark.parametrize("masked", [[0, 2, 5, 7], [0, 1, 2, 4], [4, 5, 6, 7]], ids=["alike", "unlike", "none here"])
def test_processes_may_hold_different_numbers_of_masked_patches(
    masked: list[int], dtype: torch.dtype, tolerance: float, two_ranks: Any
) -> None:
    value, gradient = of_patches(World(), dtype, masked)
    assert gradient.norm() > 1e-3
    for found in two_ranks.run(of_patches, dtype, masked):
        torch.testing.assert_close(found[0], value, rtol=tolerance, atol=0)
        assert (found[1] - gradient).norm() <= tolerance * gradient.norm()
