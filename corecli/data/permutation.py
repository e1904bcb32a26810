"""Permutations of any length that are computed place by place, without an array of all of them.

A number of b bits is cut into two halves. In each of 12 rounds one half is changed by a hash of the other half and of
the seed (an alternating Feistel network), which maps the 2^b numbers one to one. A result outside the range is mapped
again until it is inside (cycle-walking); b is the smallest possible, so less than two steps are needed on average.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 12
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_POWERS = 2 ** np.arange(63, dtype=np.int64)


def permuted(positions: np.ndarray, sizes: np.ndarray | int, seeds: np.ndarray | int) -> np.ndarray:
    """Return int64 [n]: where a permutation of range(size) has each position; every seed gives another permutation.

    sizes, seeds: one for all positions or one for each; seeds from 0 to 2^64 - 1.
    """
    value = np.array(positions, dtype=np.uint64)
    size = np.broadcast_to(np.asarray(sizes, dtype=np.uint64), value.shape)
    seed = np.broadcast_to(np.asarray(seeds, dtype=np.uint64), value.shape)
    bits = np.searchsorted(_POWERS, size.astype(np.int64)).astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):
        value[outside] = _feistel(value[outside], bits[outside], seed[outside])
        outside = outside[value[outside] >= size[outside]]
    return value.astype(np.int64)


def mixed(values: np.ndarray, seed: np.ndarray | int) -> np.ndarray:
    """Return a hash of each value and the seed, uint64 (the finalizer of SplitMix64)."""
    x = (values.astype(np.uint64) + np.uint64(1)) * _GOLDEN ^ np.asarray(seed, dtype=np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(values: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each value, a function of the value and the seed: float64 [n]."""
    return (mixed(values, seed) >> np.uint64(11)) * 2.0**-53


def _feistel(value: np.ndarray, bits: np.ndarray, seed: np.ndarray) -> np.ndarray:
    one = np.uint64(1)
    width = bits // np.uint64(2)
    low_mask, high_mask = (one << width) - one, (one << (bits - width)) - one
    low, high = value & low_mask, value >> width
    for number in range(ROUNDS):
        key = mixed(seed, number)
        if number % 2:
            low = low ^ (mixed(high, key) & low_mask)
        else:
            high = high ^ (mixed(low, key) & high_mask)
    return (high << width) | low
