"""Which rows make the batch of a step: a pure function of (seed, step), so nothing needs saving to resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator

_REPAIR_ROUNDS, _CANDIDATES = 32, 8


def steps_per_epoch(segments: Sequence[int], batch_size: int) -> int:
    """Full batches in one pass over all slots; each segment drops the rest of its last batch."""
    return sum(num_slots // batch_size for num_slots in segments)


def sequential_batches(num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[np.ndarray]:
    """Every row once, unshuffled, as int64 batches; the last one may be short.

    Ranks take whole batches in turn, so a batch holds the same rows whatever the number of processes.
    """
    for start in range(rank * batch_size, num_rows, world_size * batch_size):
        yield np.arange(start, min(start + batch_size, num_rows), dtype=np.int64)


def positions(batch_size: int, *, rank: int, world_size: int, parts: int = 1) -> np.ndarray:
    """A rank's places in a global batch that is worked off in consecutive parts: int64 [batch_size / world_size].

    A part is shared out among the ranks in consecutive slices, so that it holds the same images whatever their number.
    """
    return np.arange(batch_size).reshape(parts, world_size, -1)[:, rank].ravel()


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Images of one group are shown together, `size` at a time; groups: int64, of every row, numbered from 0.

    An epoch shows of every group as many sets as it has members for, in random order, each member once at most; those
    left over wait for the next epoch's draw. A group with fewer members than `size` has one set, in which they go round
    again.
    """

    groups: np.ndarray
    size: int

    def num_images(self, rows: np.ndarray) -> int:
        """The images of an epoch over slots that show `rows`."""
        return int(self._num_sets(rows)[1].sum()) * self.size

    def num_short(self, rows: np.ndarray) -> int:
        """Groups with fewer members than a set."""
        return int((self._num_sets(rows)[0] < self.size).sum())

    def shuffled(self, rows: np.ndarray, g: np.random.Generator) -> np.ndarray:
        """The rows of an epoch, set after set."""
        rows = g.permutation(rows)
        rows = rows[np.argsort(self.groups[rows], kind="stable")]  # group by group, members in random order
        num_members, num_sets = self._num_sets(rows)
        first, first_set = (np.cumsum(num) - num for num in (num_members, num_sets))
        group = np.repeat(np.arange(len(num_sets)), num_sets)
        place = (np.arange(len(group)) - first_set[group])[:, None] * self.size + np.arange(self.size)
        sets = rows[first[group][:, None] + place % num_members[group][:, None]]
        return g.permutation(sets).ravel()

    def _num_sets(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Members and sets of each group that has members, in the groups' order."""
        num_members = np.unique(self.groups[rows], return_counts=True)[1]
        return num_members, np.maximum(num_members // self.size, 1)


class Order:
    """The rows of every global batch of a run.

    Within an epoch the slots are shuffled by (seed, segment, epoch) and cut into full batches; those left over wait for
    the next shuffle. Consecutive segments of slots (a sequential mixture) take turns: a segment is given steps in
    proportion to its slots, so that each of its images is shown as often as one of any other segment.

    slots: int64, the row shown in each slot of an epoch (a repeated row has several); segments: lengths of consecutive
    ranges of slots, which add up to their number; total_steps: of the whole run, resumed or not.

    distinct_groups: int64, the group of every row, numbered from 0. Where given, a batch holds at most one member of a
    group: members that meet are exchanged with slots of other batches, or with left-over ones, which keeps every slot
    at most once in an epoch. Where that cannot work out, as for a group with more members than the epoch has batches,
    those still together after a fixed number of rounds stay together. An epoch of a million slots takes about 0.3 s.

    sets: where given, a batch is made of whole sets, which must divide it (an assertion), and an epoch has as many
    images as `sets` says.

    Errors: DataError when a segment has fewer slots than a batch, or a batch more images than there are groups.
    """

    def __init__(
        self,
        slots: np.ndarray,
        *,
        segments: Sequence[int],
        batch_size: int,
        seed: int,
        total_steps: int,
        distinct_groups: np.ndarray | None = None,
        sets: Sets | None = None,
    ) -> None:
        assert sum(segments) == len(slots), "segments must cover the slots"
        assert sets is None or (batch_size % sets.size == 0 and distinct_groups is None)
        self.batch_size, self.total_steps = batch_size, total_steps
        self._seed = seed
        self._segments = np.split(slots, np.cumsum(segments)[:-1])
        self._groups, self._sets = distinct_groups, sets
        for rows in self._segments:
            self._check(rows)
        self._epoch_batches = [self._num_images(rows) // batch_size for rows in self._segments]
        ends = np.cumsum(segments)
        self._first_steps = [0, *(int(total_steps * end // ends[-1]) for end in ends[:-1])]
        self._epoch: tuple[int, int] | None = None
        self._batches = np.empty((0, batch_size), dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """The rows of the global batch of `step`: int64 [batch_size]."""
        segment, epoch, index = self.locate(step)
        if self._epoch != (segment, epoch):
            self._batches = self._shuffled(segment, epoch)
            self._epoch = (segment, epoch)
        return self._batches[index]

    def locate(self, step: int) -> tuple[int, int, int]:
        """The segment of a step, the epoch within the segment and the batch within the epoch."""
        segment = int(np.searchsorted(self._first_steps, step, side="right")) - 1
        epoch, index = divmod(step - self._first_steps[segment], self._epoch_batches[segment])
        return segment, epoch, index

    def _num_images(self, rows: np.ndarray) -> int:
        return len(rows) if self._sets is None else self._sets.num_images(rows)

    def _check(self, rows: np.ndarray) -> None:
        num_images = self._num_images(rows)
        if num_images < self.batch_size:
            what = "images" if len(self._segments) == 1 else "images in a segment"
            raise DataError(
                f"{num_images} {what} cannot fill a batch of {self.batch_size}", hint="use a smaller batch size"
            )
        if self._groups is None:
            return
        num_groups = len(np.unique(self._groups[rows]))
        if num_groups < self.batch_size:
            reason = f"a batch of {self.batch_size} cannot hold at most one image of each of {num_groups} groups"
            raise DataError(reason, hint="use a smaller batch size, or let groups repeat within a batch")

    def _shuffled(self, segment: int, epoch: int) -> np.ndarray:
        g = numpy_generator(self._seed, "order", segment, epoch)
        rows = self._segments[segment]
        rows = g.permutation(rows) if self._sets is None else self._sets.shuffled(rows, g)
        if self._groups is not None:
            rows = rows[_spread(self._groups[rows], self.batch_size, g)]
        num_batches = len(rows) // self.batch_size
        return rows[: num_batches * self.batch_size].reshape(num_batches, self.batch_size)


def _spread(groups: np.ndarray, batch_size: int, g: np.random.Generator) -> np.ndarray:
    """A rearrangement (int64 positions) of shuffled slots of these `groups` that keeps equal ones in separate batches.

    Each round offers every position that repeats a group of its batch an exchange with one of a few random others
    that leaves no new repetition on either side. A few rounds do unless space is tight.
    """
    position = np.arange(len(groups))
    batch = position // batch_size
    num_groups = int(groups.max()) + 1
    left_over = position >= len(groups) // batch_size * batch_size
    for _ in range(_REPAIR_ROUNDS):
        held = batch * num_groups + groups[position]
        held[left_over] = -1 - position[left_over]  # left-over slots repeat nothing
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
