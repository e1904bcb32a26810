"""Random initial weights as a function of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from corecli.base.rng import derive


@contextmanager
def seeded(seed: int, *path: str | int) -> Iterator[None]:
    """CPU initialization inside is a function of (seed, path); the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init", *path))
        yield
