"""Choose the rows of each batch as a function of (seed, step), so that resuming needs no saved state.

An epoch of up to `rows.LARGE` slots (2^21) is shuffled as an array by NumPy's Philox generator. A longer one is
shuffled by a permutation that is computed for the places of a batch alone (`permutation`), so that a step costs the
same for any number of rows. Two cases need arrays of all slots at any length: batches of distinct groups, and sets of
images of a group in a mixture that repeats rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from corecli.base.errors import DataError
from corecli.base.rng import derive, numpy_generator
from corecli.data.permutation import permuted
from corecli.data.rows import LARGE, Places, as_array, at
from corecli.data.sets import LargeSets, Sets

_REPAIR_ROUNDS, _CANDIDATES = 32, 8


def steps_per_epoch(segments: Sequence[int], batch_size: int) -> int:
    """Return the number of full batches in one pass over all slots; each segment drops its incomplete last batch."""
    return sum(num_slots // batch_size for num_slots in segments)


def sequential_batches(num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
    """Yield every row once, in order, as int64 batches; the last one may be shorter.

    Ranks take whole batches in turn, so a batch has the same rows for any number of processes.
    """
    for start in range(rank * batch_size, num_rows, world_size * batch_size):
        yield np.arange(start, min(start + batch_size, num_rows), dtype=np.int64)


def positions(batch_size: int, *, rank: int, world_size: int, parts: int = 1) -> np.ndarray:
    """Return a rank's positions in a global batch that is processed in parts: int64 [batch_size / world_size].

    Each part is split among the ranks in consecutive slices, so it has the same images for any number of ranks.
    """
    return np.arange(batch_size).reshape(parts, world_size, -1)[:, rank].ravel()


class Order:
    """The rows of every global batch of a run.

    In each epoch the slots are shuffled by (seed, segment, epoch) and cut into full batches; slots left over wait for
    the next shuffle. The segments of a sequential mixture follow one another. Each gets steps in proportion to its
    slots, so that images of all segments are shown equally often.

    slots: the row shown in each slot of an epoch, int64 or a range; a repeated row has several slots. segments: lengths
    of consecutive ranges of slots; their sum is the number of slots. total_steps: steps of the whole run, resumed or
    not.

    distinct_groups: int64, the group of every row, numbered from 0. If given, a batch holds at most one member of a
    group. Members that meet in a batch are exchanged with slots of other batches or with slots left over, so that every
    slot is still shown at most once in an epoch. If that is impossible, for example because a group has more members
    than the epoch has batches, members that still meet after a fixed number of rounds stay together. An epoch of a
    million slots takes about 0.3 s.

    sets: if given, a batch consists of whole sets, whose size must divide it (an assertion).

    Errors: DataError if a segment has fewer slots than a batch, or a batch has more images than there are groups.
    """

    def __init__(
        self,
        slots: Places,
        *,
        segments: Sequence[int],
        batch_size: int,
        seed: int,
        total_steps: int,
        distinct_groups: np.ndarray | None = None,
        sets: Sets | LargeSets | None = None,
    ) -> None:
        assert sum(segments) == len(slots), "segments must cover the slots"
        assert sets is None or (batch_size % sets.size == 0 and distinct_groups is None)
        self.batch_size, self.total_steps = batch_size, total_steps
        self._seed = seed
        self._segments = split(slots, segments)
        self._groups, self._sets = distinct_groups, sets
        for rows in self._segments:
            self._check(rows)
        self._epoch_batches = [self._num_images(rows) // batch_size for rows in self._segments]
        ends = np.cumsum(segments)
        self._first_steps = [0, *(int(total_steps * end // ends[-1]) for end in ends[:-1])]
        self._epoch: tuple[int, int] | None = None
        self._batches = np.empty((0, batch_size), dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of the global batch of `step`: int64 [batch_size]."""
        segment, epoch, index = self.locate(step)
        if self._is_computed(self._segments[segment]):
            return self._computed(segment, epoch, index)
        if self._epoch != (segment, epoch):
            self._batches = self._shuffled(segment, epoch)
            self._epoch = (segment, epoch)
        return self._batches[index]

    def locate(self, step: int) -> tuple[int, int, int]:
        """Return the segment of a step, the epoch within the segment and the batch within the epoch."""
        segment = int(np.searchsorted(self._first_steps, step, side="right")) - 1
        epoch, index = divmod(step - self._first_steps[segment], self._epoch_batches[segment])
        return segment, epoch, index

    def _num_images(self, rows: Places) -> int:
        return len(rows) if self._sets is None else self._sets.num_images(rows)

    def _is_computed(self, rows: Places) -> bool:
        """Whether the batches of a segment are computed one by one."""
        return isinstance(self._sets, LargeSets) or (self._sets is None and self._groups is None and len(rows) > LARGE)

    def _computed(self, segment: int, epoch: int, index: int) -> np.ndarray:
        seed = derive(self._seed, "order", segment, epoch)
        if isinstance(self._sets, LargeSets):
            return self._sets.shuffled(index * self.batch_size, self.batch_size, seed)
        rows, places = self._segments[segment], np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        return at(rows, permuted(places, len(rows), seed))

    def _check(self, rows: Places) -> None:
        num_images = self._num_images(rows)
        if num_images < self.batch_size:
            what = "images" if len(self._segments) == 1 else "images in a segment"
            raise DataError(
                f"{num_images} {what} cannot fill a batch of {self.batch_size}", hint="use a smaller batch size"
            )
        if self._groups is None:
            return
        num_groups = len(np.unique(self._groups[as_array(rows)]))
        if num_groups < self.batch_size:
            reason = f"a batch of {self.batch_size} cannot hold at most one image of each of {num_groups} groups"
            raise DataError(reason, hint="use a smaller batch size, or allow several images of a group in a batch")

    def _shuffled(self, segment: int, epoch: int) -> np.ndarray:
        g = numpy_generator(self._seed, "order", segment, epoch)
        rows = as_array(self._segments[segment])
        if self._sets is None:
            rows = g.permutation(rows)
        else:
            assert isinstance(self._sets, Sets)
            rows = self._sets.shuffled(rows, g)
        if self._groups is not None:
            rows = rows[_spread(self._groups[rows], self.batch_size, g)]
        num_batches = len(rows) // self.batch_size
        return rows[: num_batches * self.batch_size].reshape(num_batches, self.batch_size)


def split(slots: Places, segments: Sequence[int]) -> list[Places]:
    """Return the slots of each segment; nothing is copied."""
    ends = np.cumsum([0, *segments]).tolist()
    return [slots[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


def _spread(groups: np.ndarray, batch_size: int, g: np.random.Generator) -> np.ndarray:
    """Rearrange shuffled slots of these `groups` (as int64 positions) so that equal groups are in different batches.

    In each round, every position that repeats a group of its batch is exchanged with one of a few random positions, if
    that creates no new repetition in either batch. A few rounds are enough unless space is tight.
    """
    position = np.arange(len(groups))
    batch = position // batch_size
    num_groups = int(groups.max()) + 1
    left_over = position >= len(groups) // batch_size * batch_size
    for _ in range(_REPAIR_ROUNDS):
        held = batch * num_groups + groups[position]
        held[left_over] = -1 - position[left_over]  # slots left over repeat nothing
        by_pair = np.argsort(held, kind="stable")
        present = held[by_pair]
        repeats = by_pair[1:][np.diff(present) == 0]
        if len(repeats) == 0:
            break
        partners = g.integers(0, len(groups), (len(repeats), _CANDIDATES))
        there = batch[partners] * num_groups + groups[position[repeats], None]
        here = batch[repeats, None] * num_groups + groups[position[partners]]
        fine = (left_over[partners] | ~_contains(present, there)) & ~_contains(present, here)
        fine &= ~np.isin(partners, repeats)
        partners = partners[np.arange(len(repeats)), fine.argmax(1)]
        fine = fine.any(1) & _first_of_each(partners)
        a, b = repeats[fine], partners[fine]
        position[a], position[b] = position[b], position[a]
    return position


def _contains(sorted_values: np.ndarray, values: np.ndarray) -> np.ndarray:
    index = np.searchsorted(sorted_values, values)
    return sorted_values[np.minimum(index, len(sorted_values) - 1)] == values


def _first_of_each(values: np.ndarray) -> np.ndarray:
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first
