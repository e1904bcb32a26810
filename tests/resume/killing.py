"""Lines that are killed at random moments and run again, and what they must leave: the bytes of one left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lines import Ended, Fork, Line, contents

from corecli.base import checkpoint
from corecli.base.errors import CorecliError
from corecli.data.imageset import open_set
from corecli.engine import run

Start = Callable[[Sequence[object]], Line | Fork]


@dataclass(frozen=True)
class Work:
    """A line under test, without --out, the name of what it writes, and of the file whose presence says it is there."""

    argv: Sequence[object]
    target: str = "out.safetensors"
    sign: str = ""

    def line(self, folder: Path) -> list[object]:
        return [*self.argv, "-q", "--out", folder / self.target]


def survives(name: str, work: Work, start: Start, alone: Alone, folder: Path, *, kills: int, seed: int) -> None:
    """Kill a line so many times, and compare; it tells how many runs that took."""
    rounds = killed(work, start, folder / "killed", alone, kills=kills, seed=seed)
    print(f"{name}: {kills} kills in {rounds} runs of {alone.seconds:.1f} s")


class Watch(threading.Thread):
    """Looks for a target every few milliseconds, by its sign; whenever one is new, it must open and be whole."""

    def __init__(self, target: Path, sign: Path) -> None:
        super().__init__(daemon=True)
        self._target, self._sign, self._over = target, sign, threading.Event()
        self.broken: list[str] = []
        self.sightings = 0

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        seen = None
        while not self._over.wait(0.002):
            try:
                found = os.stat(self._sign)
            except FileNotFoundError:
                continue
            if (found.st_ino, found.st_mtime_ns) != seen:
                seen = found.st_ino, found.st_mtime_ns
                self._verify()

    def _verify(self) -> None:
        self.sightings += 1
        try:
            verify(self._target)
        except (CorecliError, OSError, ValueError) as error:
            self.broken.append(f"{type(error).__name__}: {error}")


def verify(target: Path) -> None:
    """Read all of a target. Errors: DataError when anything is missing or damaged."""
    if target.is_dir() or target.suffix == ".tar":
        images = open_set(target)
        images.read(np.arange(len(images.rows)))
    else:
        checkpoint.load(target)


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    assert not [name for name in wanted if found[name] != wanted[name]]


@dataclass(frozen=True)
class Alone:
    """What a line makes when it is left alone, and how long that takes."""

    contents: dict[str, Any]
    seconds: float


def left_alone(work: Work, start: Start, folder: Path) -> Alone:
    folder.mkdir()
    started = time.monotonic()
    ended = start(work.line(folder)).end()
    assert ended.code == 0, ended
    assert ended.out == f"{folder / work.target}\n"
    return Alone(contents(folder), time.monotonic() - started)


def killed(work: Work, start: Start, folder: Path, alone: Alone, *, kills: int, seed: int) -> int:
    """Kill a line so many times, at random moments or while a file is being written, and let it end; returns the
    number of runs that took, for where one ends before it can be killed another is started.
    """
    draw, rounds = random.Random(seed), 0
    while kills > 0:
        rounds += 1
        inside = folder / str(rounds)
        inside.mkdir(parents=True)
        out = inside / work.target
        with Watch(out, out / work.sign) as watch:
            how = Ended(-signal.SIGKILL, "", "")
            while how.code == -signal.SIGKILL:
                line = start(work.line(inside))
                if kills > 0:
                    _await_moment(line, out, draw, alone.seconds)
                    line.signal(signal.SIGKILL)
                how = line.end()
                kills -= how.code == -signal.SIGKILL
        ended(how, inside, alone)
        assert not watch.broken
        assert watch.sightings
    return rounds


def ended(how: Ended, folder: Path, alone: Alone) -> None:
    assert how.code == 0, how
    same(contents(folder), alone.contents)


def _await_moment(line: Line | Fork, out: Path, draw: random.Random, seconds: float) -> None:
    """Wait for a random time, and one time in three from then on until some file is being written."""
    writing = draw.random() < 1 / 3
    until = time.monotonic() + draw.uniform(0, 0.7 * seconds)
    while time.monotonic() < until and line.runs():
        time.sleep(0.002)
    while writing and line.runs() and not any(_being_written(out)):
        time.sleep(0.001)


def _being_written(out: Path) -> Iterator[Path]:
    """The temporary files of a target, of saved work, and where a target is one of shards of each of these."""
    for folder in (out.parent, run.folder_of(out), out, *out.glob("*.d")):
        with contextlib.suppress(FileNotFoundError):  # it may go at any moment
            yield from folder.glob(".*.tmp")
