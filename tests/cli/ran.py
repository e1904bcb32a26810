"""What the tests of this folder get back from a command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """How a command line ended: its exit code and what it wrote to the file descriptors 1 and 2."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]
