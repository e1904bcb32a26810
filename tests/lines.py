"""Command lines as processes of their own, to be watched, signalled and killed.

`Line` starts a real one. `Fork` starts them as forks of a process that has imported everything already: as real to a
signal and to the file system, but there in a fraction of a second. `python lines.py` is that process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import Faults

_PATIENCE_SEC = 240.0  # for a test machine that does other things as well


@dataclass(frozen=True)
class Ended:
    """How a line ended: its exit code (negative: the signal that killed it) and what it wrote."""

    code: int
    out: str
    err: str


class Line:
    """A command line running in a process, in a session of its own, its output going to files in `folder`."""

    def __init__(
        self,
        argv: Sequence[object],
        *,
        folder: Path,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "corecli"),
    ) -> None:
        self._name = f"{time.monotonic_ns()}"
        self._files = [folder / f"{self._name}.{stream}" for stream in ("out", "err")]
        out, err = (open(path, "wb") for path in self._files)
        with out, err:
            self._process = subprocess.Popen(
                [*program, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self.pid = self._process.pid

    def runs(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, timeout: float = _PATIENCE_SEC) -> Ended:
        """Wait for the end."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        return Ended(code, *(path.read_text() for path in self._files))


class Nursery:
    """The process whose forks run the lines; `start` gives one like `Line`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self._codes: dict[int, int] = {}
        self._answer()

    def start(self, argv: Sequence[object], *, folder: Path, faults: dict[str, Any] | None = None) -> Fork:
        """Start a line; `faults` are the arguments of `Faults`, and `save`, a file for the counts."""
        name = f"{time.monotonic_ns()}"
        files = [folder / f"{name}.{stream}" for stream in ("out", "err")]
        assert self._process.stdin is not None
        request = [[str(word) for word in argv], *map(str, files), faults]
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        while (answer := self._answer())[0] != "started":
            pass
        return Fork(self, answer[1], files)

    def code(self, pid: int, timeout: float) -> int | None:
        """The exit code of a fork, None when it still runs after so many seconds."""
        until = time.monotonic() + timeout
        while pid not in self._codes:
            assert self._process.stdout is not None
            left = max(0.0, until - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            self._answer()
        return self._codes[pid]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> list[Any]:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        if answer[0] == "ended":
            self._codes[answer[1]] = answer[2]
        return answer


class Fork:
    """A command line running in a fork."""

    def __init__(self, nursery: Nursery, pid: int, files: list[Path]) -> None:
        self.pid, self._nursery, self._files = pid, nursery, files

    def runs(self) -> bool:
        return self._nursery.code(self.pid, 0) is None

    def signal(self, number: int) -> None:
        if self.runs():
            os.kill(self.pid, number)

    def end(self, timeout: float = _PATIENCE_SEC) -> Ended:
        """Wait for the end."""
        code = self._nursery.code(self.pid, timeout)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError(f"still running after {timeout} s: {self._files[1].read_text()}")
        # A fork that was killed at once may not have opened its files.
        return Ended(code, *(path.read_text() if path.exists() else "" for path in self._files))


def wait_for(condition: Callable[[], object], line: Line | Fork, timeout: float = _PATIENCE_SEC) -> None:
    """Poll until something is so; an error when the line ends, or the time, before that."""
    until = time.monotonic() + timeout
    while not condition():
        assert line.runs(), line.end()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.002)


def children(pid: int) -> Iterator[int]:
    """The processes that descend from one."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from children(child)


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder by name: its bytes, or of a log the records without the time they took.

    Left out is the indices that whoever reads tar shards puts beside them.
    """
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.match(".*index.safetensors")):
        name = str(path.relative_to(folder))
        found[name] = records(path) if path.suffix == ".jsonl" else path.read_bytes()
    return found


def records(log: Path) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name not in ("seconds", "data_wait")} for record in parsed
    ]


def _nurse() -> None:
    """Fork a child for each line read from stdin; report on stdout which have started or ended."""
    import diffusers  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch

    from corecli.cli.app import run_line
    from corecli.cli.verbs import VERBS, command_of

    torch.set_num_threads(1)
    for verb in VERBS:
        command_of(verb)
    import corecli.commands.train_gen.monitor
    import corecli.commands.train_ssl.learner
    import corecli.generators.adm  # noqa: F401

    _report("ready")
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    while True:
        if select.select([requests], [], [], 0.005)[0]:
            line = requests.readline()
            if not line:
                return
            argv, out, err, faults = json.loads(line)
            pid = os.fork()
            if pid == 0:
                os.setsid()
                for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
                    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), descriptor)
                code = _run(argv, faults or {}, run_line)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # torch takes a second to leave otherwise
            _report("started", pid)
        pid, status = os.waitpid(-1, os.WNOHANG) if _has_children() else (0, 0)
        if pid:
            _report("ended", pid, os.waitstatus_to_exitcode(status))


def _run(argv: list[str], faults: dict[str, Any], run_line: Callable[[list[str]], int]) -> int:
    save = faults.pop("save", None)
    counted = Faults(**faults) if faults else None
    if counted is not None:
        counted.install()
    code = run_line(argv)
    if counted is not None and save:
        counted.save(save)
    return code


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _report(*facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _nurse()
