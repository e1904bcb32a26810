"""Kill it anywhere, run the same line again: the result is that of a run that was left alone, byte for byte.

Lines run as forks of one process (tests/lines.py), so that many kills fit into a few seconds; the slow tests make more
of them, and some on processes started afresh.
"""

from __future__ import annotations

import functools
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Alone, Start, Work, ended, left_alone, same, survives
from lines import Ended, Fork, Line, Nursery, contents, wait_for
from photographs import make_photographs

from corecli.base import checkpoint
from corecli.cli.app import run_line
from corecli.engine import run
from corecli.engine.signals import StopRequest

Reference = Callable[[str], "Alone"]
NET = [
    "--backbone",
    "resnet10-tiny",
    "--projector-hidden",
    "32",
    "--projector-dim",
    "16",
    "--optimizer",
    "adamw",
    "--lr",
    "1e-3",
]
SAVING = ["--save-sec", "0", "--log-every", "3"]


@dataclass(frozen=True)
class Inputs:
    """What the lines under test read."""

    folder: Path
    encoder: Path
    table: Path
    generator: Path
    many: Path
    pngs: Path
    mixture: Path
    photographs: Path


@pytest.fixture(scope="module")
def alone(nursery: Nursery, inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def of(name: str) -> Alone:
        return left_alone(work_of(name, inputs), lambda argv: nursery.start(argv, folder=folder), folder / name)

    return of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    from corecli.data.imageset import write_set
    from corecli.data.rows import make_rows

    folder = tmp_path_factory.mktemp("inputs")
    encoder, table, generator = folder / "f.safetensors", folder / "z.safetensors", folder / "g.pt"
    many, pngs, mixture = folder / "many.safetensors", folder / "pngs", folder / "mix.json"
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10_000, 3, 8, 8), dtype=np.uint8))
    write_set(many, make_rows([f"{i:05d}" for i in range(10_000)]), [images], class_names=(), header={})
    rows = make_rows([f"{i % 4}/{i:03d}" for i in range(96)], labels=np.arange(96) % 4)
    write_set(pngs, rows, [images[:96]], class_names=tuple("0123"), header={})
    short = ["--steps", 2, "--batch-size", 32, "-q"]
    make("train-ssl", "--data", "digits:8:train", *NET, *short, "--out", encoder)
    make("extract", "--data", "digits:8", "--encoder", encoder, "-q", "--out", table)
    make("train-gen", "--data", "digits:8", "--features", table, *GENERATOR, *short, "--out", generator)
    real = "digits:8:train"
    make("inflate", "--real", real, "--synthetic", pngs, "--repeat", 2, "--out", mixture)
    photographs = folder / "photographs.safetensors"
    make("inflate", "--real", make_photographs(folder / "photographs"), "--materialize", photographs)
    return Inputs(folder, encoder, table, generator, many, pngs, mixture, photographs)


GENERATOR = ["--preset", "tiny", "--set", "channels=8", "--set", "channel_mult=1,2", "--set", "head_channels=8"]


def make(*argv: object) -> None:
    assert run_line([*map(str, argv), "--device", "cpu"]) == 0


def work_of(name: str, inputs: Inputs) -> Work:
    """The line under test; each has a few seconds of work, in several states or shards."""
    digits = ["--data", "digits:8:train"]
    table = ["--features", inputs.table]
    lines: dict[str, list[object]] = {
        "train-ssl": ["train-ssl", *digits, *NET, *SAVING, "--steps", 14, "--batch-size", 32],
        "train-gen": [
            *("train-gen", *digits, *table, *GENERATOR, *SAVING),
            *("--steps", 14, "--batch-size", 32, "--preview-every", 6),
        ],
        "sample": ["sample", "--ckpt", inputs.generator, *table, "--steps", 1],
        "extract": ["extract", "--data", inputs.many, "--encoder", inputs.encoder, "--batch-size", 128],
        "stages": [
            *("train-ssl", *digits, *table, *NET, *SAVING),
            *("--stage", "psl:7", "--stage", "simclr:8", "--batch-size", 32),
        ],
        "mixture": ["train-ssl", "--data", inputs.mixture, *NET, *SAVING, "--steps", 14, "--batch-size", 32],
        "pngs": [
            *("train-ssl", "--data", inputs.pngs, *NET, *SAVING),
            *("--steps", 14, "--batch-size", 32, "--workers", 2),
        ],
        "photographs": [
            *("train-ssl", "--data", inputs.photographs, "--view-px", 16, *NET, *SAVING),
            *("--steps", 14, "--batch-size", 24, "--workers", 2),
        ],
        "packed": ["sample", "--ckpt", inputs.generator, *table, "--steps", 1, "--format", "packed"],
        "tar": ["sample", "--ckpt", inputs.generator, *table, "--steps", 1, "--format", "tar"],
        "shards": ["sample", "--ckpt", inputs.generator, *table, "--steps", 1, "--shards", 4],
    }
    sign = "manifest.json" if name == "shards" else ""
    return Work([*lines[name], "--device", "cpu"], target=target_of(name, Path()).name, sign=sign)


def target_of(name: str, folder: Path) -> Path:
    return folder / ("out" if name in ("sample", "packed", "tar", "shards") else "out.safetensors")


VERBS = ("train-ssl", "train-gen", "sample", "extract")
OTHERS = ("stages", "mixture", "pngs", "photographs", "packed", "tar", "shards")


@pytest.mark.parametrize("name", [*VERBS, "photographs"])
def test_a_killed_line_ends_as_if_left_alone(
    name: str, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    survives(name, work_of(name, inputs), start, alone(name), tmp_path, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VERBS, *OTHERS])
def test_twenty_kills(name: str, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path) -> None:
    survives(name, work_of(name, inputs), start, alone(name), tmp_path, kills=20, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", VERBS)
def test_kills_of_processes_started_afresh(name: str, inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "streams").mkdir()

    def afresh(argv: Sequence[object]) -> Line:
        return Line(argv, folder=tmp_path / "streams")

    work = work_of(name, inputs)
    survives(name, work, afresh, left_alone(work, afresh, tmp_path / "alone"), tmp_path, kills=5, seed=3)


@pytest.mark.slow
def test_jobs_of_an_array_are_killed_at_once(inputs: Inputs, start: Start, alone: Reference, tmp_path: Path) -> None:
    """Each makes one of the shards; the last to end completes the set that one line makes of all of them."""
    wanted = alone("shards")
    folder, draw = tmp_path / "killed", random.Random(4)
    folder.mkdir()
    argv = work_of("shards", inputs).line(folder)
    at = argv.index("--shards")

    def jobs() -> list[Line | Fork]:
        return [start([*argv[:at], "--shard", f"{i}/4", *argv[at + 2 :]]) for i in range(4)]

    for _ in range(6):
        running = jobs()
        for line in running:
            time.sleep(draw.uniform(0, wanted.seconds / 4))
            line.signal(signal.SIGKILL)
        assert {line.end().code for line in running} <= {0, -signal.SIGKILL}
    assert [line.end().code for line in jobs()] == [0] * 4
    same(contents(folder), wanted.contents)


@pytest.mark.slow
@pytest.mark.parametrize("step", [6, 7, 8])
def test_a_kill_around_the_boundary_of_stages(
    step: int, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    """Two stages, of 7 and 8 steps; a new optimizer and another head begin at step 7."""
    wanted = alone("stages")
    folder = tmp_path / "killed"
    folder.mkdir()
    argv = work_of("stages", inputs).line(folder)
    line = start(argv)
    state = run.folder_of(target_of("stages", folder)) / f"state-{step:09d}.safetensors"
    wait_for(state.exists, line)
    line.signal(signal.SIGKILL)
    line.end()
    ended(start(argv).end(), folder, wanted)


def interrupted(name: str, inputs: Inputs, start: Start, folder: Path, *, files: int) -> list[object]:
    """Kill a line as soon as it has so many states or shards; returns the line."""
    folder.mkdir()
    argv = work_of(name, inputs).line(folder)
    line = start(argv)
    wait_for(lambda: len(saved(name, folder)) >= files, line)
    line.signal(signal.SIGKILL)
    assert line.end().code == -signal.SIGKILL
    return argv


def saved(name: str, folder: Path) -> list[Path]:
    return sorted(run.folder_of(target_of(name, folder)).glob("s*-*.safetensors"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [flip, pytest.param(cut, marks=pytest.mark.slow), pytest.param(empty, marks=pytest.mark.slow)]
)
def test_a_damaged_state_gives_way_to_the_one_before(
    damage: Callable[[Path], None], inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    wanted = alone("train-ssl")
    argv = interrupted("train-ssl", inputs, start, tmp_path / "killed", files=2)
    *_, before, newest = saved("train-ssl", tmp_path / "killed")
    damage(newest)
    line = start(argv)
    wait_for(lambda: not before.exists(), line)  # once two more are saved
    ended(line.end(), tmp_path / "killed", wanted)


@pytest.mark.parametrize("name", ["sample", pytest.param("extract", marks=pytest.mark.slow)])
def test_a_damaged_shard_is_made_again(
    name: str, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    wanted = alone(name)
    argv = interrupted(name, inputs, start, tmp_path / "killed", files=2)
    first, second, *_ = saved(name, tmp_path / "killed")
    flip(first)
    cut(second)
    ended(start(argv).end(), tmp_path / "killed", wanted)


def test_no_flipped_bit_stops_a_run_from_finding_its_states(tmp_path: Path) -> None:
    draw = random.Random(0)
    for step in (3, 5):
        checkpoint.save(tmp_path / f"state-{step:09d}.safetensors", {"a/x": torch.arange(4)}, kind="state", step=step)
    newest = tmp_path / "state-000000005.safetensors"
    whole = newest.read_bytes()
    for _ in range(400):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        newest.write_bytes(content)
        step, tensors = run._newest_state(tmp_path)
        assert step in (3, 5)
        assert torch.equal(tensors["a/x"], torch.arange(4))


@pytest.mark.parametrize("name", ["train-ssl", "sample"])
def test_saved_work_of_another_config_is_refused(
    name: str, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = interrupted(name, inputs, start, tmp_path / "killed", files=1)
    before = contents(tmp_path / "killed")
    del before[f".{target_of(name, Path()).name}.lock"]  # of the killed process
    assert run_line([*map(str, argv), "--seed", "1"]) == 73
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    same(contents(tmp_path / "killed"), before)


def test_a_folder_that_is_not_ours_is_left_alone(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "out.d" / "holiday.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"mine")
    argv = [*map(str, work_of("sample", inputs).line(tmp_path))]
    for more in ([], ["--force"]):
        assert run_line([*argv, *more]) == 73
        assert f"{theirs.parent}: already exists" in capsys.readouterr().err
    assert theirs.read_bytes() == b"mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_saves_and_the_same_line_ends_the_run(
    number: signal.Signals, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    names = {signal.SIGTERM: "train-ssl", signal.SIGINT: "train-gen", signal.SIGUSR1: "stages"}
    name = names.get(number, "train-ssl")
    wanted = alone(name)
    folder = tmp_path / "stopped"
    folder.mkdir()
    argv = [*work_of(name, inputs).line(folder), "--save-sec", 3600]
    line = start(argv)
    log = run.folder_of(target_of(name, folder)) / "log.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size, line)
    sent = time.monotonic()
    line.signal(number)
    how = line.end()
    assert time.monotonic() - sent < 10
    (state,) = saved(name, folder)
    step, total = int(state.stem[6:]), 15 if name == "stages" else 14
    assert how == Ended(
        75, "", f"corecli {argv[0]}: error: stopped at step {step} of {total}, saved (the same line resumes)\n"
    )
    ended(start(argv).end(), folder, wanted)


def test_nohup_keeps_a_run_going() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_sigint_does_not_wait() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["sample", pytest.param("extract", marks=pytest.mark.slow)])
def test_a_signal_keeps_the_finished_shards(
    name: str, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    wanted = alone(name)
    folder = tmp_path / "stopped"
    folder.mkdir()
    argv = work_of(name, inputs).line(folder)
    line = start(argv)
    wait_for(lambda: len(saved(name, folder)) == 2, line)
    line.signal(signal.SIGTERM)
    said = f"corecli {name}: error: stopped, finished shards are kept (the same line resumes)\n"
    assert line.end() == Ended(75, "", said)
    kept = {path: path.stat().st_ino for path in saved(name, folder)}
    assert len(kept) >= 2
    line = start(argv)
    wait_for(lambda: len(saved(name, folder)) > len(kept), line)
    assert {path: path.stat().st_ino for path in kept} == kept  # not made again
    ended(line.end(), folder, wanted)


@pytest.mark.parametrize("name", ["train-ssl", pytest.param("sample", marks=pytest.mark.slow)])
def test_what_a_kill_after_the_end_leaves_is_cleared(
    name: str, inputs: Inputs, start: Start, alone: Reference, tmp_path: Path
) -> None:
    """A kill between the target's appearance and the end of the process leaves saved work; the same line clears it."""
    wanted = alone(name)
    argv = interrupted(name, inputs, start, tmp_path / "killed", files=2)
    work = run.folder_of(target_of(name, tmp_path / "killed"))
    shutil.copytree(work, tmp_path / "work")
    ended(start(argv).end(), tmp_path / "killed", wanted)
    shutil.copytree(tmp_path / "work", work, dirs_exist_ok=True)
    before = target_of(name, tmp_path / "killed").stat().st_mtime_ns
    assert start(argv).end().code == 0
    assert target_of(name, tmp_path / "killed").stat().st_mtime_ns == before
    assert contents(tmp_path / "killed").keys() == wanted.contents.keys()
