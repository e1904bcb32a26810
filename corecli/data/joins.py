"""Join columns of strings: find keys in other keys, number groups, find duplicates, without a dictionary of strings.

Strings are compared by 64-bit hashes, computed for many at once; whatever hashes report as equal is then compared byte
by byte, so that the results are exact. Memory is 8 to 32 bytes for each string, whatever its length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from corecli.data.strings import BLOCK, PackedStrings, Strings, pack

_LONG = 512  # bytes; longer strings are hashed one by one
_WORKING_BYTES = 1 << 22
_ODD, _MULTIPLIER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


class Finder:
    """Finds strings in a column of different strings."""

    def __init__(self, strings: Strings) -> None:
        self._strings = strings
        hashed = hashes(strings)
        self._order = np.argsort(hashed, kind="stable")
        self._sorted = hashed[self._order]

    def find(self, wanted: Strings) -> np.ndarray:
        """Return int64 [n]: the place of each wanted string in the column, -1 for a string that is not there."""
        places = [self._find_block(block) for block in wanted.blocks()]
        return np.concatenate([np.zeros(0, dtype=np.int64), *places])

    def _find_block(self, wanted: PackedStrings) -> np.ndarray:
        found, hashed = np.full(len(wanted), -1, dtype=np.int64), hashes(wanted)
        place = np.searchsorted(self._sorted, hashed)
        open_ = np.arange(len(wanted))
        while len(open_):  # more than once only if different strings have the same hash
            is_inside = place[open_] < len(self._sorted)
            open_ = open_[is_inside]
            open_ = open_[self._sorted[place[open_]] == hashed[open_]]
            rows = self._order[place[open_]]
            same = equal(wanted.take(open_), self._strings.take(rows))
            found[open_[same]] = rows[same]
            open_ = open_[~same]
            place[open_] += 1
        return found


def find(wanted: Strings, strings: Strings) -> np.ndarray | range:
    """Return the place in `strings` of each wanted string, -1 if it is not there; a range for the same strings."""
    if wanted == strings:
        return range(len(strings))
    return Finder(strings).find(wanted)


def first_duplicate(strings: Strings) -> str | None:
    """Return the first string that has appeared before, None if all are different."""
    hashed = hashes(strings)
    in_order = np.sort(hashed)
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(repeated):
        return None
    seen: set[str] = set()
    for string in strings.take(np.flatnonzero(np.isin(hashed, repeated))):
        if string in seen:
            return string
        seen.add(string)
    return None


def all_places(wanted: str, strings: Strings) -> np.ndarray:
    """Return the places of all strings that are `wanted`, ascending: int64 [n]."""
    places = np.flatnonzero(hashes(strings) == hashes(pack([wanted]))[0])
    return np.array([place for place in places.tolist() if strings[place] == wanted], dtype=np.int64)


def number(strings: Strings) -> np.ndarray:
    """Return int64 [N]: the strings, numbered by first appearance."""
    if not len(strings):
        return np.zeros(0, dtype=np.int64)
    hashed = hashes(strings)
    order = np.argsort(hashed, kind="stable")
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.diff(hashed[order]) != 0
    first = np.empty(len(order), dtype=np.int64)  # for each string the first one with its hash
    first[order] = order[begins][np.cumsum(begins) - 1]
    if not _agree(strings, first):
        return _number_one_by_one(strings)
    is_first = np.zeros(len(order), dtype=bool)
    is_first[first] = True
    return (np.cumsum(is_first) - 1)[first]


def in_order(strings: Strings) -> np.ndarray:
    """Return int64 [N]: the places of the strings in the order of their code points."""
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(block.lengths for block in strings.blocks())])
    if lengths.max(initial=0) > _LONG:
        listed = list(strings)
        return np.array(sorted(range(len(listed)), key=listed.__getitem__), dtype=np.int64)
    words = _words(strings.take(np.arange(len(strings)))).byteswap()  # UTF-8 keeps the order of code points
    return np.lexsort((lengths, *words.T[::-1]))


def hashes(strings: Strings) -> np.ndarray:
    """Return uint64 [N]: a hash of each string, the same in every process."""
    found = [_hashes(block) for block in strings.blocks()]
    return np.concatenate([np.zeros(0, dtype=np.uint64), *found])


def equal(strings: PackedStrings, others: PackedStrings) -> np.ndarray:
    """Return bool [n]: whether strings are the same, place by place."""
    same = strings.lengths == others.lengths
    candidates = np.flatnonzero(same)
    for here in _pieces(strings.lengths[candidates]):
        rows = candidates[here]
        a, b = (_words(column.take(rows)) for column in (strings, others))
        same[rows] = (a == b).all(axis=1)
    return same


def _hashes(strings: PackedStrings) -> np.ndarray:
    lengths = strings.lengths
    hashed = np.empty(len(strings), dtype=np.uint64)
    for row in np.flatnonzero(lengths > _LONG).tolist():
        data = hashlib.sha256(strings.take(np.array([row])).joined()).digest()
        hashed[row] = int.from_bytes(data[:8], "little")
    short = np.flatnonzero(lengths <= _LONG)
    for here in _pieces(lengths[short]):
        rows = short[here]
        hashed[rows] = _mixed(_words(strings.take(rows)), lengths[rows])
    return hashed


def _mixed(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    value = lengths.astype(np.uint64) * _ODD
    for number in range(words.shape[1]):
        mixed = (value ^ words[:, number]) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
        value = np.where(8 * number < lengths, mixed, value)
    value = (value ^ (value >> np.uint64(32))) * _ODD
    return value ^ (value >> np.uint64(29))


def _words(strings: PackedStrings) -> np.ndarray:
    """Return the bytes of each string, filled up with zeros: uint64 [n, words of the longest]."""
    strings.check_bounds()
    lengths = strings.lengths
    width = 8 * max(1, -(-int(lengths.max(initial=0)) // 8))
    columns = np.arange(width)
    places = np.minimum(strings.starts[:, None] + columns, max(0, len(strings.data) - 1))
    data = strings.data[places] if len(strings.data) else np.zeros(places.shape, dtype=np.uint8)
    data[columns >= lengths[:, None]] = 0
    return np.ascontiguousarray(data).view("<u8")


def _pieces(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield places, strings of similar length together, so that filling them up wastes little memory."""
    order = np.argsort(lengths, kind="stable") if len(lengths) and lengths.max() > 64 else np.arange(len(lengths))
    start = 0
    while start < len(order):
        longest = int(lengths[order[start : start + BLOCK]].max())
        num = max(1, min(BLOCK, _WORKING_BYTES // max(8, longest)))
        yield order[start : start + num]
        start += num


def _agree(strings: Strings, first: np.ndarray) -> bool:
    """Whether every string is the same as the one at its place in `first`."""
    others = np.flatnonzero(first != np.arange(len(first)))
    return all(
        bool(equal(strings.take(rows), strings.take(first[rows])).all())
        for rows in np.split(others, range(BLOCK, len(others), BLOCK))
    )


def _number_one_by_one(strings: Strings) -> np.ndarray:
    seen: dict[str, int] = {}
    return np.fromiter((seen.setdefault(s, len(seen)) for s in strings), dtype=np.int64, count=len(strings))
