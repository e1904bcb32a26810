"""Several jobs that write the same target at once: the target is complete, and each job succeeds or is refused."""

from __future__ import annotations

import errno
import fcntl
import functools
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from killing import Start
from lines import Ended, Nursery, contents

from corecli.base import claim
from corecli.base.claim import claimed
from corecli.cli.app import run_line
from corecli.commands.inflate import command as inflate
from corecli.data.mix import save_mixture

NET = ["--backbone", "resnet10-tiny", "--projector-hidden", 16, "--projector-dim", 8, "--batch-size", 16, "--steps", 3]
UNET = ["--preset", "tiny", "--set", "channels=8", "--set", "channel_mult=1,2", "--set", "head_channels=8"]
GENERATOR = [*UNET, "--batch-size", 16, "--steps", 3]
LINES = {
    "directory": ["inflate", "--real", "digits::test", "--materialize", "out"],
    "packed": ["inflate", "--real", "digits::test", "--materialize", "out.safetensors"],
    "npz": ["inflate", "--real", "digits::test", "--materialize", "out.npz"],
    "tar": ["inflate", "--real", "digits::test", "--materialize", "out.tar"],
    "mixture": [
        "inflate",
        "--real",
        "digits::train",
        "--synthetic",
        "digits::test",
        "--fraction",
        0.5,
        "--out",
        "out.json",
    ],
    "captions": ["captions", "--num", 400, "--out", "out.jsonl"],
    "features": ["extract", "--data", "digits:8", "--encoder", "../f.safetensors", "--out", "out.safetensors"],
    "train-ssl": ["train-ssl", "--data", "digits:8:test", *NET, "--out", "out.pt"],
    "train-gen": ["train-gen", "--data", "digits:8:test", *GENERATOR, "--out", "out.pt"],
    "shards": ["sample", "--ckpt", "../g.pt", "--steps", 1, "--num", 64, "--shards", 2, "--out", "out"],
}
Reference = Callable[[str], dict[str, object]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder `f` and a generator `g`."""
    folder = tmp_path_factory.mktemp("races")
    for line in (
        ["train-ssl", "--data", "digits:8:test", *NET, "--out", folder / "f.safetensors"],
        ["train-gen", "--data", "digits:8:test", *GENERATOR, "--out", folder / "g.pt"],
    ):
        assert run_line([*map(str, line), "--device", "cpu", "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def alone(nursery: Nursery, folder: Path) -> Reference:
    """What a line makes without company."""

    @functools.cache
    def of(kind: str) -> dict[str, object]:
        inside, streams = folder / f"alone-{kind}", folder / f"streams-{kind}"
        inside.mkdir()
        streams.mkdir()
        ended = nursery.start(placed(LINES[kind], inside), folder=streams).end()
        assert ended.code == 0, ended
        return contents(inside)

    return of


def placed(line: Sequence[object], inside: Path) -> list[object]:
    """Return a line with the paths that it writes in a folder, and those that it reads beside that folder."""
    outs = ("--out", "--materialize")
    words = [inside / str(w) if previous in outs else w for previous, w in zip([None, *line], line, strict=False)]
    inputs = {"../f.safetensors": inside.parent / "f.safetensors", "../g.pt": inside.parent / "g.pt"}
    return [inputs.get(str(word), word) for word in words] + ["--device", "cpu"]


def race(start: Start, lines: Sequence[Sequence[object]], inside: Path) -> list[Ended]:
    inside.mkdir()
    jobs = [start(placed(line, inside)) for line in lines]
    return [job.end() for job in jobs]


def check_refused(ended: Ended) -> None:
    """A refused job has one line of an error and may have said that it waits."""
    assert ended.code in (73, 75), ended
    assert [": error: " in line for line in ended.err.splitlines() if ": waiting for " not in line] == [True], ended


@pytest.mark.parametrize(("kind", "num"), [("directory", 4), ("npz", 2), ("features", 2), ("shards", 4)])
def test_equal_jobs_at_once_leave_one_complete_target(
    kind: str, num: int, start: Start, folder: Path, alone: Reference
) -> None:
    everyone_succeeds(kind, num, start, folder, alone, name=f"{kind}-{num}")


@pytest.mark.slow
@pytest.mark.parametrize("again", range(2))
@pytest.mark.parametrize("num", [2, 4])
@pytest.mark.parametrize("kind", LINES)
def test_forty_races(kind: str, num: int, again: int, start: Start, folder: Path, alone: Reference) -> None:
    everyone_succeeds(kind, num, start, folder, alone, name=f"{kind}-{num}-again-{again}")


def everyone_succeeds(kind: str, num: int, start: Start, folder: Path, alone: Reference, *, name: str) -> None:
    inside = folder / name
    ends = race(start, [LINES[kind]] * num, inside)
    assert [ended.code for ended in ends] == [0] * num, ends
    assert sum("already there, left alone" in ended.err for ended in ends) == num - 1
    found, wanted = contents(inside), alone(kind)
    assert found.keys() == wanted.keys()
    assert not [key for key in wanted if found[key] != wanted[key]]
    shutil.rmtree(inside)


@pytest.mark.parametrize("kind", ["directory", "train-ssl"])
def test_of_different_jobs_at_once_one_wins_and_the_others_are_refused(kind: str, start: Start, folder: Path) -> None:
    ends = race(start, [[*LINES[kind], "--seed", seed] for seed in range(3)], folder / f"different-{kind}")
    assert sorted(ended.code for ended in ends) == [0, 73, 73], ends
    for ended in ends:
        if ended.code:
            check_refused(ended)
            assert "exists with another config: seed" in ended.err


def test_jobs_of_an_array_run_side_by_side(start: Start, folder: Path, alone: Reference) -> None:
    line, inside = LINES["shards"][:-4], folder / "array"
    shards = [[*line, "--shard", f"{i}/2", "--out", "out"] for i in range(2)]
    inside.mkdir()
    with claimed([inside / "out.shard-0-of-2"], note=pytest.fail):  # as a job that takes long
        first, second = (start(placed(shard, inside)) for shard in shards)
        assert second.end().code == 0
        assert first.runs()
    assert first.end().code == 0
    found, wanted = contents(inside), alone("shards")
    assert found == wanted


def test_a_directory_that_lost_an_image_is_not_finished(start: Start, folder: Path) -> None:
    inside = folder / "lost"
    assert race(start, [LINES["directory"]], inside)[0].code == 0
    next((inside / "out").rglob("*.png")).unlink()
    ended = start(placed(LINES["directory"], inside)).end()
    assert ended.code == 65, ended
    assert len(ended.err.splitlines()) == 1


MIXTURE = ["inflate", "--real", "digits::test", "--out"]


def _hold(path: Path, started: Any) -> None:
    with claimed([path], note=lambda note: None):
        started.set()
        time.sleep(60)


def test_a_target_that_another_job_writes_is_refused_with_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork, out = multiprocessing.get_context("fork"), tmp_path / "out.json"
    started = fork.Event()
    holder = fork.Process(target=_hold, args=(out, started), daemon=True)
    holder.start()
    assert started.wait(60)
    monkeypatch.setattr(claim, "WAIT_SEC", 0.1)
    assert run_line([*MIXTURE, str(out)]) == 75
    holder.kill()
    note, error = capsys.readouterr().err.splitlines()
    name = f"process {holder.pid} on "
    assert note.startswith(f"corecli inflate: {out}: waiting for {name}")
    assert error.startswith(f"corecli inflate: error: {out}: {name}")
    assert error.endswith(" is writing it (run the same line again when that has ended)")
    holder.join()
    assert run_line([*MIXTURE, str(out)]) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gets_a_note(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert run_line([*MIXTURE, str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().err == (
        f"corecli inflate: {tmp_path}/out.json: not locked, because the file system cannot "
        f"({os.strerror(number).lower()}); start no second job that writes it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_target_of_another_program_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(path: Path, mixture: Any) -> None:
        path.write_text("theirs")
        save_mixture(path, mixture)

    monkeypatch.setattr(inflate, "save_mixture", late)
    out = tmp_path / "out.json"
    assert run_line([*MIXTURE, str(out)]) == 73
    assert "was written by another program while this job made it, and is kept" in capsys.readouterr().err
    assert out.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
