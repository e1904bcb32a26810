"""The members of every group of a set, found without a pass over all rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corecli.data.rows import SYNTHETIC, Places, Rows, at


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupIndex:
    """The rows of a set, group by group.

    members: the N rows, ordered by group, then real before synthetic images, then by variant. starts: [G + 1]; the
    members of group g are from place `starts[g]` to `starts[g + 1]`. origins: uint8 [N], of the rows of the set.
    """

    members: Places
    starts: Places
    origins: np.ndarray

    @property
    def num_groups(self) -> int:
        """Number of groups, G."""
        return len(self.starts) - 1

    def range_of(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (first, count) of the members of some groups: int64 [n] each."""
        first = at(self.starts, groups)
        return first, at(self.starts, groups + 1) - first

    def synthetic(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (first, count) of the synthetic members of some groups: int64 [n] each; by bisection."""
        low, count = self.range_of(groups)
        end = low + count
        high = end.copy()
        while len(still := np.flatnonzero(low < high)):
            middle = (low[still] + high[still]) // 2
            is_synthetic = self.origins[at(self.members, middle)] == SYNTHETIC
            high[still] = np.where(is_synthetic, middle, high[still])
            low[still] = np.where(is_synthetic, low[still], middle + 1)
        return low, end - low


def group_index(rows: Rows) -> GroupIndex:
    """Return the index of the groups of a set; in a large set it is stored beside the set, if that is possible."""
    if rows.are_alone:
        return GroupIndex(members=range(len(rows)), starts=range(len(rows) + 1), origins=rows.origins)
    arrays = rows.stored("groups", lambda: _index_arrays(rows))
    return GroupIndex(members=arrays["members"], starts=arrays["starts"], origins=rows.origins)


def _index_arrays(rows: Rows) -> dict[str, np.ndarray]:
    ids = rows.group_ids
    counts = np.bincount(ids)
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return {"members": np.lexsort((rows.variants, rows.origins, ids)), "starts": starts}
