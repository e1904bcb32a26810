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


def refused(ran: Ran, verb: str, code: int, *words: object) -> None:
    """A line was refused with `code` and one line on stderr that holds `words`, and nothing on stdout."""
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith(f"corecli {verb}: error: ")
    assert ran.code == code, ran.err
    for word in words:
        assert str(word) in ran.err
    assert ran.out == ""
