"""Errors that no code expects end in one line, with the traceback where it can be found."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lines import Line
from ran import Run, refused
from steps import before_step

LINE = "train-ssl --data digits:8:test --preset tiny --batch-size 8 --steps 3 --quiet --out o"
WHERE = "(this is a bug; set CORECLI_DEBUG=1 for the traceback, which is also in o.d/traceback.txt)"


def wrong_key() -> object:
    return {}["a\x1b[31m"]


def endless() -> object:
    return endless()


def wrong_shape() -> object:
    raise RuntimeError("The size of tensor a (2) must match\nframe #0: at::native\n")


def leave() -> object:
    sys.exit("gone")


def panic() -> object:
    """As libraries in Rust do, whose panics are not an Exception."""
    raise BaseException("index out of bounds")


BUGS = {
    wrong_key: "unexpected KeyError: 'a\\x1b[31m' ",
    endless: "unexpected RecursionError: maximum recursion depth exceeded",
    wrong_shape: "unexpected RuntimeError: The size of tensor a (2) must match ",
    leave: "unexpected SystemExit: gone ",
    panic: "unexpected BaseException: index out of bounds ",
}


@pytest.mark.parametrize("bug", BUGS)
def test_an_unexpected_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, bug: Callable[[], object]) -> None:
    before_step(monkeypatch, 1, bug)
    refused(run(*LINE.split()), "train-ssl", 1, BUGS[bug], WHERE)
    text = Path("o.d/traceback.txt").read_text()
    assert text.startswith("Traceback (most recent call last):")
    assert f"in {bug.__name__}\n" in text
    assert not Path("o").exists()


def test_debug_prints_the_traceback_before_the_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORECLI_DEBUG", "1")
    before_step(monkeypatch, 1, wrong_key)
    ran = run(*LINE.split())
    *trace, line = ran.err.splitlines()
    assert (ran.code, trace[0]) == (1, "Traceback (most recent call last):")
    assert line.endswith("KeyError: 'a\\x1b[31m' (this is a bug; it is in o.d/traceback.txt)")
    assert "\x1b" not in ran.err


def test_debug_keeps_the_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORECLI_DEBUG", "1")
    Path("a\x1b[31m.json").write_text("{")
    ran = run("show", "a\x1b[31m.json", "--out", "t.png")
    *trace, line = ran.err.splitlines()
    assert (ran.code, trace[0]) == (65, "Traceback (most recent call last):")
    assert line.startswith("corecli show: error: a\\x1b[31m.json: not a readable JSON file")
    assert "\x1b" not in ran.err


def test_no_file_is_written_without_a_run_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corecli.commands.train_ssl.command.check", lambda config: wrong_key())
    where = "(this is a bug; set CORECLI_DEBUG=1 for the traceback)"
    refused(run(*LINE.split()), "train-ssl", 1, "unexpected KeyError: ", where)
    assert not list(Path().iterdir())


def test_processes_report_a_bug_once(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    from corecli.engine.run import Run\n"
        "    Run.steps = lambda self: {}['a']\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "CORECLI_DEVICE": "cpu"}
    argv = [*LINE.split()[:-1], tmp_path / "o", "--nproc", "2"]
    ended = Line(argv, folder=tmp_path, environment=environment).end()
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1), ended.err
    assert f"error: unexpected KeyError: 'a' {WHERE.replace('o.d', f'{tmp_path}/o.d')}\n" in ended.err
    assert "KeyError: 'a'" in (tmp_path / "o.d/traceback.txt").read_text()
