from __future__ import annotations

import itertools
import os
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from corecli.base.errors import DataError, UsageError
from corecli.data import loader as loader_module
from corecli.data.imageset import ImageSet
from corecli.data.loader import Loader, read_batches
from corecli.data.order import Order, sequential_batches
from corecli.data.rows import Rows, make_rows
from corecli.views.augment import augment, draw
from corecli.views.policies import POLICIES

CPU = torch.device("cpu")


@dataclass(kw_only=True)
class MemorySet:
    """Images in memory; as a decoding set it counts what it reads and can hold one bad file."""

    images: torch.Tensor
    decodes: bool = False
    bad_row: int | None = None
    class_names: tuple[str, ...] = ()
    guard: bool = False
    fingerprint: str = "memory"
    bad: tuple[str, ...] = ()
    read_rows: list[int] = field(default_factory=list)

    @property
    def rows(self) -> Rows:
        return make_rows([f"dog/{i:04d}" for i in range(len(self.images))])

    @property
    def slots(self) -> np.ndarray:
        return np.arange(len(self.images))

    @property
    def segments(self) -> tuple[int, ...]:
        return (len(self.images),)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    def read(self, indices: np.ndarray) -> torch.Tensor:
        if self.bad_row in indices:
            raise DataError("truncated image", where=f"dog/{self.bad_row:04d}.png", hint="make it again")
        self.read_rows.extend(indices.tolist())
        return self.images[torch.from_numpy(indices)]


def set_of(num: int, size: int = 8, **fields) -> MemorySet:
    g = torch.Generator().manual_seed(0)
    return MemorySet(images=torch.randint(0, 256, (num, 3, size, size), generator=g, dtype=torch.uint8), **fields)


def order_of(image_set: ImageSet, batch_size: int, total_steps: int = 10) -> Order:
    return Order(image_set.slots, segments=image_set.segments, batch_size=batch_size, seed=0, total_steps=total_steps)


def rank(rank: int = 0, size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, size=size, device=CPU)


def load(image_set: ImageSet, order: Order, **options) -> list[tuple[int, torch.Tensor, np.ndarray]]:
    return list(Loader(image_set, order, **{"world": rank(), **options}))


@pytest.fixture
def nothing_held(monkeypatch):
    monkeypatch.setattr(loader_module, "_MAX_MEMORY_BYTES", 0)


@pytest.mark.parametrize(
    ("decodes", "workers"), [(False, 0), (False, 2), (True, 0), (True, 1), (True, 3), (True, "auto")]
)
def test_batches_are_the_orders_however_they_are_read(decodes, workers, nothing_held):
    image_set = set_of(50, decodes=decodes)
    order = order_of(image_set, 8)
    before = torch.get_rng_state()
    got = load(image_set, order, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)  # the model's own randomness must not depend on the workers
    assert [step for step, _, _ in got] == list(range(10))
    for step, images, rows in got:
        assert np.array_equal(rows, order.batch(step))
        assert images.dtype == torch.uint8 and torch.equal(images, image_set.images[torch.from_numpy(rows)])


def test_a_small_decoding_set_is_read_once_and_remembered():
    image_set = set_of(50, decodes=True)
    got = load(image_set, order_of(image_set, 8, total_steps=40), workers=0)
    assert len(got) == 40
    assert sorted(image_set.read_rows) == list(range(50))
    assert all(torch.equal(images, image_set.images[torch.from_numpy(rows)]) for _, images, rows in got)
    few_steps = set_of(50, decodes=True)
    load(few_steps, order_of(few_steps, 8, total_steps=2), workers=0)
    assert len(few_steps.read_rows) == 16


def test_resuming_at_a_step_equals_the_straight_run():
    image_set = set_of(50)
    straight = load(image_set, order_of(image_set, 8))
    resumed = load(image_set, order_of(image_set, 8), first_step=6)
    assert len(resumed) == 4
    for (a, images_a, rows_a), (b, images_b, rows_b) in zip(straight[6:], resumed, strict=True):
        assert a == b and torch.equal(images_a, images_b) and np.array_equal(rows_a, rows_b)


def test_two_ranks_of_four_see_the_views_one_rank_of_eight_sees():
    image_set = set_of(50, 32)
    order = order_of(image_set, 8, total_steps=3)

    def views(world: SimpleNamespace) -> list[torch.Tensor]:
        seen = []
        for step, images, rows in load(image_set, order, world=world):
            p = draw(POLICIES["strong"], seed=0, step=step, view=1, batch=8, image_size=image_set.image_size)
            first = world.rank * len(rows)
            seen.append(augment(images, p[first : first + len(rows)]))
        return seen

    for whole, *parts in zip(views(rank()), views(rank(0, 2)), views(rank(1, 2)), strict=True):
        assert torch.equal(torch.cat(parts), whole)


def test_ranks_that_do_not_divide_the_batch_are_a_usage_error():
    image_set = set_of(50)
    with pytest.raises(UsageError, match=r"among 3 processes \(use a batch size that is a multiple of 3\)"):
        Loader(image_set, order_of(image_set, 8), world=rank(0, 3))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_a_data_error_that_names_it(workers, nothing_held):
    image_set = set_of(16, decodes=True, bad_row=5)
    with pytest.raises(DataError) as caught:
        load(image_set, order_of(image_set, 8), workers=workers)
    assert str(caught.value) == "dog/0005.png: truncated image (make it again)"


def test_the_next_batch_is_read_while_the_current_one_is_used():
    image_set = set_of(50)
    second_read, count = threading.Event(), itertools.count(1)
    read = image_set.read

    def counting(indices: np.ndarray) -> torch.Tensor:
        if next(count) == 2:
            second_read.set()
        return read(indices)

    image_set.read = counting
    batches = iter(Loader(image_set, order_of(image_set, 8), world=rank()))
    next(batches)
    assert second_read.wait(timeout=10)
    batches.close()


def test_sequential_batches_are_read_in_order_with_a_short_last_one():
    image_set = set_of(22)
    got = list(read_batches(image_set, sequential_batches(22, 8), device=CPU))
    assert [len(rows) for _, rows in got] == [8, 8, 6]
    assert torch.equal(torch.cat([images for images, _ in got]), image_set.images)
    assert list(read_batches(image_set, sequential_batches(0, 8), device=CPU)) == []


def test_workers_are_as_many_as_this_ranks_cores_but_one(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert loader_module._num_workers("auto") == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_module._num_workers("auto") == 3


@pytest.mark.gpu
def test_a_set_that_fits_moves_to_the_gpu():
    image_set, world = set_of(50), SimpleNamespace(rank=0, size=1, device=torch.device("cuda"))
    for total_steps in (2, 10):  # too few to be worth moving the set, and enough
        for _, images, rows in load(image_set, order_of(image_set, 8, total_steps=total_steps), world=world):
            assert images.is_cuda and torch.equal(images.cpu(), image_set.images[torch.from_numpy(rows)])
