"""Writes a short sentence about the mood of every concept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from corecli.base.errors import UsageError
from corecli.captions.parts.backend import Answer, Request, Settings

NEEDS_MODEL = False
USES = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of toy-backend."""

    mood: str = "calm"
    exclamations: int = 0


def check(settings: Settings) -> None:
    """Check the mood. Errors: UsageError."""
    if not settings.options.mood.isalpha():
        raise UsageError(f"{settings.options.mood!r} is not a mood", hint="write one word")


def open_backend(settings: Settings) -> Toy:
    """Return the backend. Errors: as `check`."""
    check(settings)
    return Toy(settings.options)


class Toy:
    def __init__(self, options: Options) -> None:
        self._options = options

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            end = "!" * self._options.exclamations or "."
            text = f"A {self._options.mood} day with {request.prompt.words}, number {request.seed}{end}"
            yield request, Answer(raw=text, finish_reason="stop")
