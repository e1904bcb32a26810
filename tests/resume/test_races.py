"""Several jobs that write the same target at once: the target is complete, and each job succeeds or is refused."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from killing import Start
from lines import Ended, Nursery, contents

from corecli.base.claim import claimed
from corecli.cli.app import run_line

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
