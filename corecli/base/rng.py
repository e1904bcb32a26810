"""Counter-based randomness: every draw is a function of (seed, purpose, index); no generator state is saved."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and `path` alone, e.g. `derive(0, "noise", key, variant)`."""
    text = repr((int(seed), *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a counter-based NumPy generator (Philox) for (seed, path)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(derive(seed, *path)))


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """Return a torch generator on the CPU for (seed, path). Draw on the CPU and move, so that all devices agree."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *path))
