"""Columns of strings, such as the keys of a set: UTF-8 bytes and offsets, decoded when they are requested.

The bytes and the offsets may be memory-mapped, so a column of any length costs a process only the strings that it uses.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from corecli.base.errors import DataError

BLOCK = 1 << 16  # strings that are decoded or compared at a time
_SHOWN = 20  # in a representation


class Strings(Sequence[str]):
    """N strings. An index gives a string, a slice gives `Strings`; equal to any sequence of the same strings."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> PackedStrings:
        """Return the strings at `indices`, int64 [n], in that order."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> PackedStrings: ...

    def __getitem__(self, index: int | slice) -> str | PackedStrings:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        place = int(index) + len(self) if index < 0 else int(index)
        if not 0 <= place < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return self.take(np.array([place])).decoded()[0]

    def __iter__(self) -> Iterator[str]:
        for block in self.blocks():
            yield from block.decoded()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str) or len(other) != len(self):
            return False
        if not isinstance(other, Strings):
            return list(self) == list(other)
        return self is other or all(
            np.array_equal(a.lengths, b.lengths) and a.joined() == b.joined()
            for a, b in zip(self.blocks(), other.blocks(), strict=True)
        )

    def __repr__(self) -> str:
        return repr(list(self[:_SHOWN]))[:-1] + (", ...]" if len(self) > _SHOWN else "]")

    __hash__: Any = None

    def blocks(self) -> Iterator[PackedStrings]:
        """Yield the strings in order, at most BLOCK at a time."""
        for start in range(0, len(self), BLOCK):
            yield self[start : start + BLOCK]


class PackedStrings(Strings):
    """Strings in one array of bytes: string i is `data[starts[i]:ends[i]]`.

    name, where: the column and its file, for errors. Decoding raises DataError for a string outside the bytes, or one
    that is not UTF-8.
    """

    def __init__(
        self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, name: str = "strings", where: object = None
    ) -> None:
        self.data, self.starts, self.ends = data, starts, ends
        self._name, self._where = name, where

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]: the lengths in bytes."""
        return self.ends - self.starts

    def take(self, indices: np.ndarray) -> PackedStrings:
        """Return the strings at `indices`; their bytes are shared, not copied."""
        return self.between(self.starts[indices], self.ends[indices])

    def between(self, starts: np.ndarray, ends: np.ndarray) -> PackedStrings:
        """Return other strings of the same bytes."""
        return PackedStrings(self.data, starts, ends, name=self._name, where=self._where)

    def blocks(self) -> Iterator[PackedStrings]:
        """Yield the strings in order, at most BLOCK at a time."""
        for start in range(0, len(self), BLOCK):
            here = slice(start, start + BLOCK)
            yield self.between(np.asarray(self.starts[here]), np.asarray(self.ends[here]))

    def decoded(self) -> list[str]:
        """Return the strings. Errors: DataError."""
        if not len(self):
            return []
        self.check_bounds()
        low, high = int(self.starts.min()), int(self.ends.max())
        pieces = list(zip((self.starts - low).tolist(), (self.ends - low).tolist(), strict=True))
        if high - low > 4 * int(self.lengths.sum()) + BLOCK:  # far apart
            return [self.decode(self.data[low + a : low + b].tobytes()) for a, b in pieces]
        data = self.data[low:high].tobytes()
        if data.isascii():
            text = data.decode()
            return [text[a:b] for a, b in pieces]
        return [self.decode(data[a:b]) for a, b in pieces]

    def joined(self) -> bytes:
        """Return the bytes of all strings, one after another. Errors: DataError."""
        if not len(self):
            return b""
        self.check_bounds()
        if (self.ends[:-1] == self.starts[1:]).all():
            return self.data[int(self.starts[0]) : int(self.ends[-1])].tobytes()
        lengths = self.lengths
        first = np.cumsum(lengths) - lengths
        places = np.repeat(self.starts - first, lengths)
        return self.data[places + np.arange(len(places))].tobytes()

    def check(self) -> None:
        """Check all offsets and all text. Errors: DataError."""
        for block in self.blocks():
            block.check_bounds()
            block.decode(block.joined())
            filled = block.starts[block.lengths > 0]
            if (block.data[filled] & 0xC0 == 0x80).any():  # in the middle of a character
                raise self._not_text()

    def check_bounds(self) -> None:
        """Check that all strings are inside the bytes. Errors: DataError."""
        if len(self) and not (
            int(self.starts.min()) >= 0
            and bool((self.starts <= self.ends).all())
            and int(self.ends.max()) <= len(self.data)
        ):
            reason = f"the {self._name} column is not in order"
            raise DataError(reason, where=self._where, hint="the file is damaged")

    def decode(self, data: bytes) -> str:
        """Return bytes of this column as text. Errors: DataError."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._not_text() from error

    def _not_text(self) -> DataError:
        return DataError(f"the {self._name} column is not UTF-8", where=self._where, hint="the file is damaged")


class JoinedStrings(Strings):
    """Strings of several columns in turn: (prefix, column, places in it); nothing is copied until strings are taken."""

    def __init__(self, parts: Sequence[tuple[str, Strings, np.ndarray | range]]) -> None:
        self._parts = tuple(parts)
        self._first = np.cumsum([0, *(len(places) for _, _, places in parts)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def take(self, indices: np.ndarray) -> PackedStrings:
        """Return the strings at `indices`, as a copy."""
        indices = np.asarray(indices, dtype=np.int64)
        part_of = np.searchsorted(self._first, indices, side="right") - 1
        found: list[PackedStrings] = []
        order = np.empty(len(indices), dtype=np.int64)
        num = 0
        for number in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == number)
            found.append(self._taken(number, indices[here] - self._first[number]))
            order[here] = np.arange(num, num + len(here))
            num += len(here)
        return (found[0] if len(found) == 1 else concatenated(found)).take(order)

    def _taken(self, number: int, positions: np.ndarray) -> PackedStrings:
        prefix, strings, places = self._parts[number]
        rows = positions + places.start if isinstance(places, range) else places[positions]
        return with_prefix(prefix, strings.take(rows)) if prefix else strings.take(rows)


def pack(strings: Iterable[str], *, name: str = "strings", where: object = None) -> Strings:
    """Return strings as a column. Errors: DataError naming one that is not UTF-8, as file names may be."""
    if isinstance(strings, Strings):
        return strings
    listed = list(strings)
    try:
        joined = "".join(listed)
        data = joined.encode()
    except UnicodeEncodeError as error:
        bad = next(string for string in listed if not string.isprintable())
        raise DataError(f"the name {bad!r} is not UTF-8", where=where, hint="rename the file") from error
    lengths = map(len, listed) if len(data) == len(joined) else (len(string.encode()) for string in listed)
    offsets = np.zeros(len(listed) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(lengths, dtype=np.int64, count=len(listed)), out=offsets[1:])
    return PackedStrings(np.frombuffer(data, dtype=np.uint8), offsets[:-1], offsets[1:], name=name, where=where)


def to_arrays(strings: Strings) -> tuple[np.ndarray, np.ndarray]:
    """Return (bytes uint8, offsets int64 [N + 1]), the form in which files store a column."""
    whole = strings if isinstance(strings, PackedStrings) else concatenated(list(strings.blocks()))
    offsets = np.zeros(len(whole) + 1, dtype=np.int64)
    np.cumsum(whole.lengths, out=offsets[1:])
    is_whole = np.array_equal(whole.starts, offsets[:-1]) and len(whole.data) == offsets[-1]
    data = whole.data if is_whole else np.frombuffer(b"".join(block.joined() for block in whole.blocks()), np.uint8)
    return data, offsets


def concatenated(parts: Sequence[PackedStrings]) -> PackedStrings:
    """Return the strings of several columns in turn, as a copy."""
    offsets = np.zeros(sum(map(len, parts)) + 1, dtype=np.int64)
    if parts:
        np.cumsum(np.concatenate([part.lengths for part in parts]), out=offsets[1:])
    data = np.frombuffer(b"".join(block.joined() for part in parts for block in part.blocks()), dtype=np.uint8)
    return PackedStrings(data, offsets[:-1], offsets[1:])


def with_prefix(prefix: str, strings: PackedStrings) -> PackedStrings:
    """Return every string with a prefix before it, as a copy."""
    head = np.frombuffer(prefix.encode(), dtype=np.uint8)
    ends = np.cumsum(strings.lengths + len(head))
    starts = ends - strings.lengths - len(head)
    data = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    is_prefix = np.zeros(len(data), dtype=bool)
    for offset, byte in enumerate(head):
        data[starts + offset], is_prefix[starts + offset] = byte, True
    data[~is_prefix] = np.frombuffer(b"".join(block.joined() for block in strings.blocks()), dtype=np.uint8)
    return PackedStrings(data, starts, ends)


def digest_strings(first: str, strings: Strings, *last: str) -> str:
    """Return the SHA-256 of `first`, all strings and `last`, joined by zero bytes, in hexadecimal."""
    hashed = hashlib.sha256(first.encode())
    for block in strings.blocks():
        hashed.update("\0".join(["", *block.decoded()]).encode())
    for part in last:
        hashed.update(f"\0{part}".encode())
    return hashed.hexdigest()
