"""Every exit code of the manual is reached by a command line, and every error has one of them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from ran import Run

from corecli.base import claim, errors
from corecli.cli import pages

DOCUMENTED = {int(code) for codes, _ in pages._EXIT_STATUS for code in re.findall(r"\d+", codes)}
PROGRAM = (sys.executable, "-m", "corecli")
SHOW = ("show", "images", "--out", "t.png")
SERVER = ("captions", "--backend", "server", "--model", "m", "--num", "1", "--tries", "1", "--url")
HOLD = (
    "import fcntl, sys; file = open('.t.png.lock', 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
    "print('locked', flush=True); sys.stdin.read()"
)


@pytest.fixture
def images(run: Run) -> None:
    """A folder of one image in the current folder."""
    Path("images").mkdir()
    Image.new("RGB", (8, 8)).save("images/0.png")


def raises(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    monkeypatch.setattr("corecli.commands.show.command.check", lambda config: act())


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    raises(monkeypatch, lambda: {}["a"])


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    raises(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))


@pytest.fixture
def damage(images: None) -> None:
    Path("images/0.png").write_bytes(b"no image")


@pytest.fixture
def obstacle(images: None) -> None:
    Path("file").touch()


@pytest.fixture
def options(images: None) -> None:
    Path("c.toml").write_text("unknown = 1")


@pytest.fixture
def other_job(images: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that holds the lock of the target."""
    monkeypatch.setattr(claim, "WAIT_SEC", 0.1)
    words = [sys.executable, "-c", HOLD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stdin is not None
        assert job.stdout.readline() == b"locked\n"
        yield
        job.stdin.close()


LINES: dict[int, tuple[str, tuple[str, ...]]] = {
    0: ("images", SHOW),
    1: ("bug", SHOW),
    2: ("images", ("show", "images")),
    65: ("damage", SHOW),
    66: ("run", ("show", "nothing", "--out", "t.png")),
    69: ("run", (*SERVER, "http://127.0.0.1:1/v1")),
    73: ("obstacle", (*SHOW[:-1], "file/t.png")),
    75: ("other_job", (*SHOW, "--quiet")),
    78: ("options", (*SHOW, "--config", "c.toml")),
    130: ("interrupt", SHOW),
}


@pytest.mark.parametrize("code", LINES)
def test_a_line_ends_with(code: int, run: Run, request: pytest.FixtureRequest) -> None:
    fixture, line = LINES[code]
    request.getfixturevalue(fixture)
    ran = run(*line)
    assert ran.code == code, ran.err
    assert ran.err.count("\n") == (code != 0), ran.err


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return subprocess.run([*PROGRAM, "completion", "bash"], stdout=writer).returncode


def full_disk() -> int:
    with open("/dev/full", "wb") as full:
        return subprocess.run([*PROGRAM, "completion", "bash"], stdout=full, stderr=subprocess.DEVNULL).returncode


def terminated() -> int:
    """Terminate a line that waits for an answer; a shell reports a signal as 128 plus its number."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        with subprocess.Popen([*PROGRAM, *SERVER, url], stderr=subprocess.DEVNULL) as waiting:
            server.settimeout(60)
            with server.accept()[0]:
                waiting.terminate()
                code = waiting.wait(60)
    return 128 - code if code < 0 else code


PROCESSES = {74: full_disk, 141: closed_pipe, 143: terminated}


@pytest.mark.parametrize("code", PROCESSES)
def test_a_process_ends_with(code: int) -> None:
    assert PROCESSES[code]() == code


def test_the_manual_has_all_codes() -> None:
    assert {*LINES, *PROCESSES} == DOCUMENTED
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CorecliError)]
    assert len(kinds) > 8
    assert {kind.exit_code for kind in kinds} <= DOCUMENTED
