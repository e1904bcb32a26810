"""Count what this process changes in a folder, and kill it before or in the middle of a given change."""

from __future__ import annotations

import builtins
import functools
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EVENTS = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class Faults:
    """Counts changes by kind: `rename`, `link`, `remove`, `mkdir`, `rmdir`, `truncate`, `open`, `write` and `fsync`.

    kind, at: the change before which this process is killed; half of a write is written before. None kills nothing.
    """

    def __init__(self, folder: str, kind: str | None = None, at: int = 0) -> None:
        self._folder, self._kind, self._at, self._pid = folder, kind, at, os.getpid()
        self.counts: Counter[str] = Counter()

    def install(self) -> None:
        """Hook into the functions of Python that change files; for a process that is about to end."""
        sys.addaudithook(self._hear)
        self._open, self._fsync, self._write = builtins.open, os.fsync, os.write
        builtins.open = io.open = functools.partial(_open, self)  # type: ignore[assignment]
        os.fsync, os.write = self._counted_fsync, self._counted_write

    def save(self, path: str) -> None:
        Path(path).write_text(json.dumps(self.counts))

    def passed(self, kind: str, tear: Callable[[], object] = lambda: None) -> None:
        """Count a change that follows; `tear` makes a part of it."""
        if os.getpid() != self._pid:  # a process that loads data
            return
        self.counts[kind] += 1
        if (kind, self.counts[kind]) == (self._kind, self._at):
            tear()
            os.kill(self._pid, signal.SIGKILL)

    def is_inside(self, path: object) -> bool:
        """Whether a path or an open file is in the folder; a path relative to a directory is, too."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        return text.startswith(self._folder) or not text.startswith("/")

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and self.is_inside(args[0]):
            self.passed(event.removeprefix("os."))
        elif event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) and self.is_inside(args[0]):
            self.passed("open")

    def _counted_fsync(self, file: Any) -> None:
        self.passed("fsync")
        self._fsync(file)

    def _counted_write(self, file: int, data: Any) -> int:
        if file > 2 and self.is_inside(file):
            self.passed("write", lambda: self._write(file, bytes(data)[: len(data) // 2]))
        return self._write(file, data)


class _Writer(io.BufferedWriter):
    """A file whose writes are counted."""

    faults: Faults

    def write(self, data: Any) -> int:
        def tear() -> None:
            super(_Writer, self).write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            self.flush()

        self.faults.passed("write", tear)
        return super().write(data)


def _open(faults: Faults, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
    plain = mode.replace("b", "").replace("t", "")
    if plain not in ("w", "a", "x") or isinstance(file, int) or not faults.is_inside(os.path.abspath(file)):
        return faults._open(file, mode, buffering, *args, **more)
    writer = _Writer(io.FileIO(file, plain))
    writer.faults = faults
    return writer if "b" in mode else io.TextIOWrapper(writer, *args, write_through=True, **more)
