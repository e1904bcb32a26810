from __future__ import annotations

import time

import numpy as np
import pytest

from corecli.base.errors import DataError
from corecli.data.order import Order, Sets, positions, sequential_batches, steps_per_epoch


def order_of(num: int, *, batch_size: int, segments=None, total_steps=1000, seed=0, slots=None, groups=None) -> Order:
    slots = np.arange(num) if slots is None else slots
    return Order(
        slots,
        segments=segments or (len(slots),),
        batch_size=batch_size,
        seed=seed,
        total_steps=total_steps,
        distinct_groups=groups,
    )


def repeats(rows: np.ndarray, groups: np.ndarray) -> int:
    return len(rows) - len(np.unique(groups[rows]))


def test_an_epoch_shows_each_slot_once_but_for_the_rest_of_the_last_batch():
    order = order_of(103, batch_size=10)
    for epoch in range(3):
        shown = np.concatenate([order.batch(step) for step in range(epoch * 10, epoch * 10 + 10)])
        assert shown.dtype == np.int64 and len(np.unique(shown)) == len(shown) == 100
    left_out = [set(range(103)) - set(np.concatenate([order.batch(e * 10 + i) for i in range(10)])) for e in range(2)]
    assert left_out[0] != left_out[1]


def test_repeated_rows_are_shown_as_often_as_they_have_slots():
    slots = np.concatenate([np.arange(10), np.arange(10), np.arange(10, 40)])
    order = order_of(0, batch_size=5, slots=slots)
    shown = np.bincount(np.concatenate([order.batch(step) for step in range(10)]))
    assert shown.tolist() == [2] * 10 + [1] * 30


def test_a_batch_depends_on_seed_and_step_alone():
    straight, resumed, other = (order_of(50, batch_size=8, seed=s) for s in (1, 1, 2))
    batches = [straight.batch(step) for step in range(20)]
    assert all(np.array_equal(resumed.batch(step), batches[step]) for step in (19, 7, 0, 13))
    assert not np.array_equal(other.batch(0), batches[0])
    assert not np.array_equal(np.sort(batches[0]), np.sort(batches[6]))  # epochs are shuffled anew


def test_stages_follow_one_another_with_steps_in_proportion_to_their_slots():
    order = order_of(90, batch_size=10, segments=(30, 60), total_steps=30)
    first, second = ([order.batch(step) for step in steps] for steps in (range(10), range(10, 30)))
    assert np.concatenate(first).max() < 30 <= np.concatenate(second).min()
    shown = np.bincount(np.concatenate(first + second))
    assert shown.min() >= 3 and shown.max() <= 4  # 300 images of 90 slots, equally often
    assert order.locate(9) == (0, 3, 0)
    assert order.locate(10) == (1, 0, 0)


def test_fewer_slots_than_a_batch_is_a_data_error():
    with pytest.raises(DataError, match=r"7 images cannot fill a batch of 8 \(use a smaller batch size\)"):
        order_of(7, batch_size=8)
    with pytest.raises(DataError, match="5 images in a segment cannot fill"):
        order_of(25, batch_size=8, segments=(20, 5))


@pytest.mark.parametrize(("members", "batch_size"), [(2, 64), (5, 64), (2, 240), (12, 16)])
def test_the_guard_keeps_groups_apart_and_slots_unique(members, batch_size):
    groups = np.arange(960) % (960 // members)
    free, guarded = (order_of(960, batch_size=batch_size, groups=g) for g in (None, groups))
    steps = range(960 // batch_size)
    assert sum(repeats(free.batch(step), groups) for step in steps) > 0
    assert sum(repeats(guarded.batch(step), groups) for step in steps) == 0
    shown = np.concatenate([guarded.batch(step) for step in steps])
    assert np.array_equal(np.sort(shown), np.arange(960))
    again = order_of(960, batch_size=batch_size, groups=groups)
    assert all(np.array_equal(again.batch(step), guarded.batch(step)) for step in steps)


def test_the_guard_moves_as_few_slots_as_it_must():
    groups = np.arange(6400) % 3200
    free, guarded = (order_of(6400, batch_size=64, groups=g) for g in (None, groups))
    batches = [(free.batch(step), guarded.batch(step)) for step in range(100)]
    collisions = sum(repeats(a, groups) for a, _ in batches)
    moved = sum((a != b).sum() for a, b in batches)
    assert 0 < collisions <= moved <= 4 * collisions


def test_a_group_too_large_for_the_epoch_still_shows_every_slot_once():
    groups = np.where(np.arange(80) < 20, 0, np.arange(80))  # 20 members of one group for 10 batches
    order = order_of(80, batch_size=8, groups=groups)
    batches = [order.batch(step) for step in range(10)]
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(80))
    assert sum(repeats(rows, groups) for rows in batches) >= 10  # unavoidable: one of them in each batch, ten too many
    assert all((groups[rows] == 0).any() for rows in batches)


def test_left_over_slots_take_in_what_the_guard_cannot_place():
    groups = np.where(np.arange(29) < 4, 0, np.arange(29))  # four of a group, three batches, five left over
    order = order_of(29, batch_size=8, groups=groups)
    for epoch in range(20):
        assert sum(repeats(order.batch(3 * epoch + i), groups) for i in range(3)) == 0


def test_fewer_groups_than_a_batch_is_a_data_error():
    with pytest.raises(DataError, match="a batch of 8 cannot hold at most one image of each of 6 groups"):
        order_of(24, batch_size=8, groups=np.arange(24) % 6)


def test_steps_per_epoch_counts_full_batches_of_each_stage():
    assert steps_per_epoch((100,), 8) == 12
    assert steps_per_epoch((15, 17), 8) == 1 + 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sequential_batches_cover_every_row_once_and_do_not_depend_on_the_ranks(world_size):
    by_rank = [list(sequential_batches(22, 5, rank=rank, world_size=world_size)) for rank in range(world_size)]
    batches = sorted(rows.tolist() for part in by_rank for rows in part)
    assert batches == [list(range(i, min(i + 5, 22))) for i in range(0, 22, 5)]
    assert list(sequential_batches(0, 5)) == []


def test_a_million_rows_take_tens_of_milliseconds_an_epoch():
    order = order_of(1_281_167, batch_size=4096)
    start = time.process_time()
    order.batch(0)
    assert time.process_time() - start < 0.5  # about 0.04 s; the rest is for a busy machine


GROUP_SIZES = [4, 1, 7, 2, 4, 12, 4, 3]


def sets_of(size: int) -> Sets:
    groups = np.repeat(np.arange(len(GROUP_SIZES)), GROUP_SIZES)
    return Sets(groups=np.random.default_rng(0).permutation(groups), size=size)


def test_a_batch_of_whole_groups_holds_several_members_of_each():
    sets = sets_of(4)
    slots = np.arange(len(sets.groups))
    order = Order(slots, segments=(len(slots),), batch_size=8, seed=0, total_steps=100, sets=sets)
    num_images = sets.num_images(slots)
    assert num_images == 4 * sum(max(1, size // 4) for size in GROUP_SIZES) == 4 * 10
    assert sets.num_short(slots) == 3
    for epoch in range(4):
        batches = [order.batch(step) for step in range(5 * epoch, 5 * epoch + 5)]
        assert order.locate(5 * epoch + 4) == (0, epoch, 4)
        shown = np.concatenate(batches).reshape(-1, 4)
        assert (sets.groups[shown] == sets.groups[shown[:, :1]]).all()
        times = np.bincount(shown.ravel(), minlength=len(slots))
        for group, size in enumerate(GROUP_SIZES):
            mine = times[sets.groups == group]
            if size >= 4:  # each once at most, and as many as make whole sets
                assert mine.max() == 1 and mine.sum() == size // 4 * 4
            else:  # round and round
                assert mine.sum() == 4 and mine.max() - mine.min() <= 1
    assert not np.array_equal(order.batch(0), order.batch(5))


def test_batches_of_whole_groups_resume_and_follow_segments():
    sets = sets_of(2)
    slots = np.concatenate([np.arange(20), np.arange(37)])  # rows shown twice are members twice

    def made() -> Order:
        return Order(slots, segments=(20, 37), batch_size=4, seed=1, total_steps=60, sets=sets)

    straight, resumed = made(), made()
    batches = [straight.batch(step) for step in range(60)]
    assert all(np.array_equal(resumed.batch(step), batches[step]) for step in (59, 3, 0, 31))
    first = np.concatenate(batches[:21])
    assert first.max() < 20 <= np.concatenate(batches[22:]).max()


def test_ranks_share_out_each_part_of_a_batch():
    for parts, size in ((1, 1), (1, 2), (3, 1), (3, 2), (2, 3)):
        mine = [positions(12, rank=rank, world_size=size, parts=parts) for rank in range(size)]
        assert sorted(np.concatenate(mine)) == list(range(12))
        for part in range(parts):
            together = np.concatenate([places.reshape(parts, -1)[part] for places in mine])
            assert together.tolist() == list(range(part * 12 // parts, (part + 1) * 12 // parts))
