"""Random initial weights that are a function of a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from corecli.base.rng import derive


@contextmanager
def seeded(seed: int, *path: str | int) -> Iterator[None]:
    """Make initialization on the CPU a function of (seed, path), and restore torch's global generator afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init", *path))
        yield


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """Return the shapes of the weights of the module that `build` returns, without allocating them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {name: tensor.shape for name, tensor in build().state_dict().items()}
