"""Sets of images of one group that are shown together (StableRep, SynCLR)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from corecli.data.groups import GroupIndex, group_index
from corecli.data.permutation import mixed, permuted
from corecli.data.rows import Places, Rows, as_array, at

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Sets of `size` images of one group, shown together. groups: int64, the group of every row, numbered from 0.

    An epoch shows as many sets of each group as its members fill, in random order, each member at most once; members
    left over wait for the draw of the next epoch. A group with fewer members than `size` has one set, which repeats
    them.
    """

    groups: np.ndarray
    size: int

    def num_images(self, rows: Places) -> int:
        """Return the number of images in an epoch over slots that show `rows`."""
        return int(self._num_sets(rows)[1].sum()) * self.size

    def num_short(self, rows: Places) -> int:
        """Return the number of groups with fewer members than a set."""
        return int((self._num_sets(rows)[0] < self.size).sum())

    def shuffled(self, rows: np.ndarray, g: np.random.Generator) -> np.ndarray:
        """Return the rows of an epoch, set after set."""
        rows = g.permutation(rows)
        rows = rows[np.argsort(self.groups[rows], kind="stable")]  # group by group, members in random order
        num_members, num_sets = self._num_sets(rows)
        first, first_set = (np.cumsum(num) - num for num in (num_members, num_sets))
        group = np.repeat(np.arange(len(num_sets)), num_sets)
        place = (np.arange(len(group)) - first_set[group])[:, None] * self.size + np.arange(self.size)
        sets = rows[first[group][:, None] + place % num_members[group][:, None]]
        return g.permutation(sets).ravel()

    def _num_sets(self, rows: Places) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of members and of sets of each group that has members, in the order of groups."""
        num_members = np.unique(self.groups[as_array(rows)], return_counts=True)[1]
        return num_members, np.maximum(num_members // self.size, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LargeSets:
    """Sets of `size` images of one group, as `Sets` describes them, where an epoch is too long for an array.

    An epoch shows every row of the set.
    """

    rows: Rows
    size: int

    def num_images(self, _: Places) -> int:
        """Return the number of images in an epoch."""
        return int(at(self.first_sets, np.array([self.index.num_groups]))[0]) * self.size

    def num_short(self, _: Places) -> int:
        """Return the number of groups with fewer members than a set."""
        if self.rows.are_alone:
            return len(self.rows)
        return sum(int((np.diff(starts) < self.size).sum()) for starts in _overlapping(self.index.starts))

    def shuffled(self, start: int, num: int, seed: int) -> np.ndarray:
        """Return the rows from place `start` of an epoch, int64 [num], set after set; both are multiples of `size`.

        The sets are in random order, and the members of a group are in a random order of their own.
        """
        index, places = self.index, np.arange(start // self.size, (start + num) // self.size)
        sets = permuted(places, self.num_images(range(0)) // self.size, seed)
        groups = sets if isinstance(self.first_sets, range) else np.searchsorted(self.first_sets, sets, "right") - 1
        first, count = index.range_of(groups)
        place = (sets - at(self.first_sets, groups))[:, None] * self.size + np.arange(self.size)
        first, count, groups = (np.repeat(column, self.size) for column in (first, count, groups))
        return at(index.members, first + permuted(place.ravel() % count, count, mixed(groups, seed)))

    @cached_property
    def index(self) -> GroupIndex:
        """The members of every group."""
        return group_index(self.rows)

    @cached_property
    def first_sets(self) -> Places:
        """The number of the first set of each group, and the number of all sets: [G + 1]."""
        if self.rows.are_alone:
            return range(len(self.rows) + 1)
        return self.rows.stored(f"sets{self.size}", self._first_sets)["first_sets"]

    def _first_sets(self) -> dict[str, np.ndarray]:
        starts = as_array(self.index.starts)
        first = np.zeros(len(starts), dtype=np.int64)
        np.cumsum(np.maximum(np.diff(starts) // self.size, 1), out=first[1:])
        return {"first_sets": first}


def _overlapping(values: Places) -> Iterator[np.ndarray]:
    """Yield consecutive pieces, each with the first value of the next one, so that differences are complete."""
    for start in range(0, len(values) - 1, _BLOCK):
        yield as_array(values[start : start + _BLOCK + 1])
