"""Progress on stderr: a bar on a terminal, otherwise one line every 30 seconds; none with --quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from corecli.base.outcome import escaped

_LINE_SEC = 30.0
_Item = TypeVar("_Item")


class Progress:
    """The progress of a piece of work in its own unit (steps or images), with images per second and time left.

    `share` is the part of the remaining work that this process does; the others are assumed to be equally far.
    """

    def __init__(self, label: str, *, total: int, done: int = 0, share: float = 1.0, shown: bool = True) -> None:
        self.label, self.total, self.done = escaped(label), total, done
        self.images, self._share, self._seen = 0, share, 0
        self._started = self._last_line = time.monotonic()
        self._first = self._reported = done
        self._bar = _bar(self.label, total, done) if shown and _is_terminal() else None
        self._plain = shown and self._bar is None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._plain and self.done > self._reported:
            self._line({})

    def advance(self, count: int = 1, *, images: int = 0) -> None:
        """Report `count` more units as done, with `images` images in them."""
        self._seen += count
        self.done = self._first + round(self._seen / self._share)
        self.images += images
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, speed=self._speed())
        elif self._plain and time.monotonic() - self._last_line >= _LINE_SEC:
            self._line({})

    def show(self, values: Mapping[str, float]) -> None:
        """Show logged values, such as the loss, beside the progress."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], values=_text(values))
        elif self._plain:
            self._line(values)

    def _speed(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        return f"{self.images / self._share / elapsed:.0f} img/s" if self.images else ""

    def _line(self, values: Mapping[str, float]) -> None:
        self._last_line, self._reported = time.monotonic(), self.done
        rate = (self.done - self._first) / max(self._last_line - self._started, 1e-9)
        left = (self.total - self.done) / rate if rate else 0.0
        parts = (f"{self.label} {self.done}/{self.total}", _text(values), self._speed(), f"{left:.0f} s left")
        print("  ".join(p for p in parts if p), file=sys.stderr, flush=True)


class Waiting(Iterator[_Item]):
    """The items of an iterator, and the share of time that was spent waiting for them."""

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items, self._waited, self._since = items, 0.0, time.monotonic()

    def __next__(self) -> _Item:
        started = time.monotonic()
        item = next(self._items)
        self._waited += time.monotonic() - started
        return item

    def share(self) -> float:
        """Return the share of time since the last call, from 0 to 1."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return min(share, 1.0)


def note(text: str) -> None:
    """Print a line on stderr, above the bar."""
    print(escaped(text), file=sys.stderr, flush=True)


def _text(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _bar(label: str, total: int, done: int) -> Any:
    """Return a rich progress bar; rich is imported on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}", markup=False),
    )
    bar = RichProgress(*columns, console=Console(stderr=True))
    bar.add_task(label, total=total, completed=done, speed="", values="")
    return bar
