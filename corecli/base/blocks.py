"""Hashes of the blocks of a tensor, with which a reader can check the parts that it reads.

A block has as many rows as fit in 64 KiB, at least one. Its hash is the first 16 bytes of its SHA-256. The hashes of a
tensor `x` are a tensor `hashes.x` in the same file, uint8 [number of blocks, 16].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

HASH_BYTES = 16
_PREFIX = "hashes."
_BLOCK_BYTES = 1 << 16


def hashes_name(name: str) -> str:
    """Return the name of the tensor with the hashes of tensor `name`."""
    return _PREFIX + name


def is_hashes(name: str) -> bool:
    """Whether a tensor of this name has the hashes of another one."""
    return name.startswith(_PREFIX)


def rows_per_block(shape: Sequence[int], item_bytes: int) -> int:
    """Return the number of rows in each block of a tensor."""
    return max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * item_bytes))


def num_blocks(shape: Sequence[int], item_bytes: int) -> int:
    """Return the number of blocks of a tensor."""
    return -(-shape[0] // rows_per_block(shape, item_bytes))


def block_hash(data: memoryview) -> bytes:
    """Return the hash of the bytes of a block."""
    return hashlib.sha256(data).digest()[:HASH_BYTES]


class BlockHasher:
    """Hash the bytes of a tensor as they are written or read, in pieces of any size."""

    def __init__(self, shape: Sequence[int], item_bytes: int) -> None:
        self._block_bytes = rows_per_block(shape, item_bytes) * math.prod(shape[1:]) * item_bytes
        self._open, self._num_bytes = hashlib.sha256(), 0
        self._done: list[bytes] = []

    def update(self, data: memoryview) -> None:
        """Add contiguous bytes."""
        data = data.cast("B")
        while len(data):
            piece, data = data[: self._block_bytes - self._num_bytes], data[self._block_bytes - self._num_bytes :]
            self._open.update(piece)
            self._num_bytes += len(piece)
            if self._num_bytes == self._block_bytes:
                self._close()

    def table(self) -> np.ndarray:
        """Return the hashes, uint8 [number of blocks, HASH_BYTES]."""
        if self._num_bytes:
            self._close()
        return np.frombuffer(b"".join(self._done), dtype=np.uint8).reshape(-1, HASH_BYTES)

    def _close(self) -> None:
        self._done.append(self._open.digest()[:HASH_BYTES])
        self._open, self._num_bytes = hashlib.sha256(), 0


def hashes_of(array: np.ndarray) -> np.ndarray:
    """Return the hashes of the blocks of an array, uint8 [number of blocks, HASH_BYTES]."""
    hasher = BlockHasher(array.shape, array.itemsize)
    hasher.update(bytes_of(array))
    return hasher.table()


def bytes_of(array: np.ndarray) -> memoryview:
    """Return the bytes of an array; they are copied only if it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
