"""Choose which members of a group become views: one mechanism for every way of mixing real and synthetic images.

`2g8l` makes two global and eight local views of each image, real or synthetic. `real:1g6l,synthetic:1g2l` makes pairs:
an epoch goes over the real images, and each is shown with a synthetic member of its group (MixDiff). `mixed:1g` shows
the synthetic member with probability p, otherwise the real image (T0 in GenSSL). Each comma-separated entry draws one
member for all its crops. The synthetic variant is a function of (seed, epoch, group); entries of one image draw
different variants as long as there are enough. An image without a synthetic member is shown instead of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.rng import derive, numpy_generator
from corecli.data.groups import group_index
from corecli.data.permutation import uniform
from corecli.data.rows import LARGE, REAL, SYNTHETIC, Places, Rows, as_array, at

Source = Literal["any", "real", "synthetic", "mixed"]
_COUNTS = re.compile(r"(?:(\d+)g)?(?:(\d+)l)?")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Views of one member of the group: `num_global` large crops and `num_local` small ones."""

    source: Source
    num_global: int
    num_local: int


def parse_views(text: str) -> tuple[Entry, ...]:
    """Parse `2g`, `2g8l` or `real:1g6l,synthetic:1g2l`. Errors: UsageError."""
    entries = tuple(_parse_entry(part.strip(), text) for part in text.split(","))
    if not any(entry.num_global for entry in entries):
        raise UsageError(f"views {text!r} include no global view", hint="write 2g or 2g8l")
    if len(entries) > 1 and any(entry.source == "any" for entry in entries):
        raise UsageError(f"views {text!r} have an entry without a source", hint="write real:1g,synthetic:1g")
    return entries


def _parse_entry(part: str, text: str) -> Entry:
    source, _, counts = part.rpartition(":")
    match = _COUNTS.fullmatch(counts)
    if match is None or not any(match.groups()):
        raise UsageError(f"views {text!r} are malformed", hint="write 2g, 2g8l or real:1g6l,synthetic:1g2l")
    if source and source not in get_args(Source):
        raise unknown_name("source of views", source, get_args(Source))
    num_global, num_local = (int(number or 0) for number in match.groups())
    return Entry(source=cast(Source, source or "any"), num_global=num_global, num_local=num_local)


def pairs(entries: Sequence[Entry]) -> bool:
    """Whether views show other members of a group, so that an epoch goes over the real images only."""
    return any(entry.source != "any" for entry in entries)


def anchors(
    rows: Rows, slots: Places, segments: Sequence[int], entries: Sequence[Entry]
) -> tuple[Places, tuple[int, ...]]:
    """Return the slots of an epoch and its segments: only those of real images if the views are paired.

    They are not copied if they are consecutive. Errors: DataError if there are no real images, or no synthetic ones.
    """
    if not pairs(entries):
        return slots, tuple(segments)
    real = rows.origins[slots.start : slots.stop] if isinstance(slots, range) else rows.origins[slots]
    real = real == REAL
    if not real.any():
        raise DataError(
            "no real images to pair",
            hint="corecli inflate --real SET --synthetic SET marks images as real or synthetic",
        )
    if any(entry.source != "real" for entry in entries) and not (rows.origins == SYNTHETIC).any():
        raise DataError(
            "no synthetic images to pair", hint="corecli inflate --real SET --synthetic SET joins both by group"
        )
    ends = np.cumsum([0, *segments])
    kept = (int(real[a:b].sum()) for a, b in zip(ends[:-1], ends[1:], strict=True))
    first, num = int(real.argmax()), int(real.sum())
    shown = slots[first : first + num] if real[first : first + num].all() else as_array(slots)[real]
    return shown, tuple(num for num in kept if num)


class Members:
    """Chooses the member that each entry of the views shows, for the images of a batch."""

    def __init__(self, rows: Rows, entries: Sequence[Entry], *, seed: int, synthetic_probability: float = 0.5) -> None:
        self.num_entries = len(entries)
        self._sources = [entry.source for entry in entries]
        self._rows, self._seed, self._probability = rows, seed, synthetic_probability
        self._index = group_index(rows) if pairs(entries) else None
        self._drawn: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None

    def of(self, images: np.ndarray, epoch: tuple[int, int]) -> np.ndarray:
        """Return int64 [E, B]: the rows that E entries show for the rows `images` [B] in epoch (segment, its epoch)."""
        if self._index is None:
            return np.stack([images] * self.num_entries)
        groups = self._rows.groups_of(images)
        first, count = self._index.synthetic(groups)
        variant, coin = self._draws(epoch, groups, self._index.num_groups)
        shown, num_drawn = [], 0
        for entry, source in enumerate(self._sources):
            if source == "real":
                shown.append(images)
                continue
            place = (np.floor(variant * count).astype(np.int64) + num_drawn) % np.maximum(count, 1)
            last = len(self._index.members) - 1
            partner = np.where(count > 0, at(self._index.members, np.minimum(first + place, last)), images)
            num_drawn += 1
            real = (coin[entry] >= self._probability) if source == "mixed" else False
            shown.append(np.where(real, images, partner))
        return np.stack(shown)

    def _draws(self, epoch: tuple[int, int], groups: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw uniform numbers for the groups of a batch: [B] for the variant, [E, B] for `mixed` entries.

        They are drawn for all groups of an epoch at once, or by a hash of the group if there are more than LARGE.
        """
        if num_groups > LARGE:
            seeds = [derive(self._seed, "members", *epoch, number) for number in range(1 + self.num_entries)]
            variant, *coins = (uniform(groups, seed) for seed in seeds)
            return variant, np.stack(coins)
        if self._drawn is None or self._drawn[0] != epoch:
            g = numpy_generator(self._seed, "members", *epoch)
            self._drawn = (epoch, g.random(num_groups), g.random((self.num_entries, num_groups)))
        return self._drawn[1][groups], self._drawn[2][:, groups]
