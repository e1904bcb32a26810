"""Random initial weights that are a function of a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from corecli.base.rng import derive


@contextmanager
def seeded(seed: int, *path: str | int) -> Iterator[None]:
    """Make initialization on the CPU a function of (seed, path), and restore torch's global generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init", *path))
        yield
