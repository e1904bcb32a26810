"""Randomness as a function of a counter: every draw comes from (seed, purpose, index), never from saved state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed that is a pure function of `seed` and `path`, e.g. `derive(0, "noise", key, variant)`."""
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """A counter-based NumPy generator for (seed, path)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(derive(seed, *path)))


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU torch generator for (seed, path); draw on the CPU and move, so that devices agree."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *path))
