"""Two processes give the results of one, and launched processes fail, stop and die together.

Equality is tested in a pool of two ranks; the behavior of the launcher is tested on real launches, most of them slow.

Two ranks sum in another order than one. After one step the difference is that of rounding. Gradients of ReLU networks
jump where an activation changes sign, so that at a high learning rate two trainings diverge after about ten steps.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lines import Ended, Line, children, contents, records, wait_for
from photographs import make_photographs

from corecli.base import checkpoint
from corecli.base.errors import DataError
from corecli.cli.app import build_app, run_line
from corecli.cli.verbs import command_of
from corecli.engine import launch
from corecli.engine.dist import World
from corecli.engine.run import Run, folder_of

TOLERANCE = 1e-5
CPU = ["--device", "cpu", "-q"]
SGD = ["--backbone", "resnet10-tiny", "--projector-hidden", 32, "--projector-dim", 16, "--optimizer", "sgd"]
GENERATOR = ["--preset", "tiny", "--set", "channels=16", "--set", "channel_mult=1,2", "--set", "head_channels=16"]
DIGITS = ["--data", "digits:8:train", "--batch-size", 32]
TRAINING: dict[str, list[object]] = {
    "simclr": ["train-ssl", *DIGITS, *SGD, "--lr", 0.003],
    "supervised": ["train-ssl", *DIGITS, *SGD, "--lr", 0.003, "--method", "supervised"],
    "photographs": [
        "train-ssl",
        "--data",
        "PHOTOGRAPHS",
        "--batch-size",
        16,
        "--view-px",
        16,
        *SGD,
        "--lr",
        1e-3,
        "--workers",
        0,
    ],
    "psl": ["train-ssl", *DIGITS, *SGD, "--lr", 0.003, "--method", "psl", "--features", "TABLE"],
    "adm": ["train-gen", *DIGITS, *GENERATOR, "--features", "TABLE"],
}
MAKING: dict[str, list[object]] = {
    "extract": ["extract", "--data", "digits:8", "--encoder", "ENCODER", "--batch-size", 100],
    "sample": ["sample", "--ckpt", "GENERATOR", "--features", "TABLE", "--steps", 2, "--rows", "::2"],
}
SCORING: dict[str, list[object]] = {
    "probe": [
        *("probe", "--encoder", "ENCODER", "--train", "digits:8:train", "--test", "digits:8:test"),
        *("--epochs", 2, "--seeds", 1),
    ],
    "fid": [
        *("fid", "--reference", "digits:8:train", "--samples", "digits:8:test", "--extractor", "ENCODER"),
        *("--workers", 0, "--metrics", "all"),
    ],
}


@dataclass(frozen=True)
class Inputs:
    """What the lines read: an encoder, its table and a generator."""

    encoder: Path
    table: Path
    generator: Path
    photographs: Path

    def fill(self, line: list[object]) -> list[str]:
        """A quiet line with the names in capitals replaced by paths."""
        named = {"ENCODER": self.encoder, "TABLE": self.table, "GENERATOR": self.generator}
        named["PHOTOGRAPHS"] = self.photographs
        return [*(str(named.get(str(word), word)) for word in line), *CPU]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    made = Inputs(folder / "f.safetensors", folder / "z.safetensors", folder / "g.safetensors", folder / "photographs")
    make_photographs(made.photographs)
    short = ["--steps", 3]
    for line in (
        [*TRAINING["simclr"], *short, "--out", made.encoder],
        [*MAKING["extract"], "--out", made.table],
        [*TRAINING["adm"], *short, "--out", made.generator],
    ):
        assert run_line(made.fill(line)) == 0
    return made


def run_verb(world: World, argv: list[str]) -> tuple[str, ...]:
    """Run a line on one rank of a world that has been joined already; returns the lines it would print."""
    config = build_app(argv[0])(argv, prog_name="corecli", standalone_mode=False)
    return command_of(argv[0]).run(config, world).lines


def difference(a: Path, b: Path) -> float:
    """The largest difference of any number of two files of the same tensors."""
    (x, _), (y, _) = checkpoint.load(a), checkpoint.load(b)
    assert x.keys() == y.keys()
    return max(float((x[name].double() - y[name].double()).abs().max()) for name in x)


def assert_same_log(a: Path, b: Path, tolerance: float = TOLERANCE) -> None:
    one, two = (records(folder_of(out) / "log.jsonl") for out in (a, b))
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for x, y in zip(one, two, strict=True):
        assert x.keys() == y.keys()
        assert x["loss"] == pytest.approx(y["loss"], rel=tolerance)
        assert x == pytest.approx(y, rel=1e-2)  # k-NN votes and the like


@pytest.mark.parametrize("name", TRAINING)
def test_two_ranks_train_as_one(name: str, inputs: Inputs, two_ranks: Any, tmp_path: Path) -> None:
    line = inputs.fill([*TRAINING[name], "--steps", 4, "--log-every", 1])
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    run_verb(World(), [*line, "--out", str(one)])
    two_ranks.run(run_verb, [*line, "--out", str(two)])
    assert 0 < difference(one, two) < TOLERANCE
    assert_same_log(one, two)


@pytest.mark.parametrize("name", MAKING)
def test_two_ranks_make_the_same_bytes(name: str, inputs: Inputs, two_ranks: Any, tmp_path: Path) -> None:
    line = inputs.fill(MAKING[name])
    run_verb(World(), [*line, "--out", str(tmp_path / "one" / "out.x")])
    two_ranks.run(run_verb, [*line, "--out", str(tmp_path / "two" / "out.x")])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("name", SCORING)
def test_two_ranks_score_alike(name: str, inputs: Inputs, two_ranks: Any) -> None:
    line = inputs.fill(SCORING[name])
    one = run_verb(World(), line)
    two = two_ranks.run(run_verb, line)[0]
    assert len(one) > 3
    assert [text.split("\t")[0] for text in one] == [text.split("\t")[0] for text in two]
    assert numbers_of(one) == pytest.approx(numbers_of(two), rel=1e-4)


def numbers_of(lines: Iterable[str]) -> list[float]:
    """Return every number in the lines of a result, without the name of the feature space."""
    return [float(text) for line in lines if not line.startswith("space\t") for text in line.split("\t")[1:]]


# ---- real launches

Start = Callable[..., Line]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a line in processes; whatever is left of them at the end is killed."""
    (tmp_path / "streams").mkdir()
    started: list[Line] = []

    def start(argv: list[Any], **more: Any) -> Line:
        started.append(Line(argv, folder=tmp_path / "streams", **more))
        return started[-1]

    yield start
    for line in started:
        for pid in (*children(line.pid), line.pid):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def logged(out: Path) -> Callable[[], bool]:
    """Whether a run has taken its first steps, so that it answers signals."""
    log = folder_of(out) / "log.jsonl"
    return lambda: log.exists() and log.stat().st_size > 0


def long_line(out: Path) -> list[object]:
    """A training that is not over when a test has done with it."""
    return [*TRAINING["simclr"], "--steps", 100_000, "--log-every", 2, *CPU, "--nproc", 2, "--out", out]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)], ids=["2-1", "1-2"])
def test_a_run_stopped_on_some_processes_goes_on_with_others(
    sizes: tuple[int, int], inputs: Inputs, start: Start, tmp_path: Path
) -> None:
    line = inputs.fill([*TRAINING["simclr"], "--lr", 1e-4, "--steps", 12, "--log-every", 2])
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    run_verb(World(), [*line, "--out", str(whole)])
    first = start([*line, "--nproc", sizes[0], "--out", parts])
    wait_for(logged(parts), first)
    stopped = time.monotonic()
    first.signal(signal.SIGTERM)
    how = first.end()
    assert time.monotonic() - stopped < 25
    (state,) = folder_of(parts).glob("state-*.safetensors")
    step = int(state.stem[6:])
    said = f"corecli train-ssl: error: stopped at step {step} of 12, saved (the same line resumes)\n"
    assert how == Ended(75, "", said)
    if sizes[1] == 1:
        run_verb(World(), [*line, "--out", str(parts)])
    else:
        assert start([*line, "--nproc", sizes[1], "--out", parts]).end() == Ended(0, f"{parts}\n", "")
    assert 0 < difference(whole, parts) < 10 * TOLERANCE
    assert_same_log(whole, parts, 10 * TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "adm", *MAKING])  # one line per verb
def test_a_launch_makes_what_one_process_makes(name: str, inputs: Inputs, start: Start, tmp_path: Path) -> None:
    line = inputs.fill({**TRAINING, **MAKING}[name])
    if name in TRAINING:
        line += ["--steps", "4", "--log-every", "1"]
    one, two = tmp_path / "one" / "out.safetensors", tmp_path / "two" / "out.safetensors"
    run_verb(World(), [*line, "--out", str(one)])
    assert start([*line, "--nproc", 2, "--out", two]).end() == Ended(0, f"{two}\n", "")
    if name in TRAINING:
        assert 0 < difference(one, two) < TOLERANCE
        assert_same_log(one, two)
    else:
        assert contents(two.parent) == contents(one.parent)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORING)
def test_a_launch_scores_as_one_process_does(name: str, inputs: Inputs, start: Start) -> None:
    line = inputs.fill(SCORING[name])
    one, two = start(line).end(), start([*line, "--nproc", 2]).end()
    assert (one.code, two.code, two.err) == (0, 0, one.err)
    numbers = [numbers_of(ended.out.splitlines()) for ended in (one, two)]
    assert len(numbers[0]) > 3
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)


def broken_pngs(folder: Path) -> Path:
    """A directory of labeled images of which the last cannot be decoded."""
    from corecli.data.imageset import write_set
    from corecli.data.rows import make_rows

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8))
    rows = make_rows([f"{i % 2}/{i:03d}" for i in range(64)], labels=np.arange(64) % 2)
    write_set(folder, rows, [images], class_names=("0", "1"), header={})
    last = folder / "1" / "063.png"
    last.write_bytes(last.read_bytes()[:-30])
    return last


@pytest.mark.slow
def test_the_error_of_one_rank_is_printed_once(inputs: Inputs, start: Start, tmp_path: Path) -> None:
    """Rank 1 reads the broken image while rank 0 waits for its features in a sum over ranks."""
    broken = broken_pngs(tmp_path / "broken")
    line = ["probe", "--encoder", inputs.encoder, "--train", tmp_path / "broken", "--test", tmp_path / "broken"]
    how = start([*line, "--batch-size", 8, *CPU, "--nproc", 2]).end()
    assert (how.code, how.out) == (65, "")
    assert how.err.startswith(f"corecli probe: error: {broken}: ")
    assert how.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (["--batch-size", "33"], 2, "a batch of 33 cannot be split equally among 2 processes"),
        (["--steps", "5", "--lr", "1e30"], 1, "training diverged"),
        (["--data", "nowhere"], 66, "nowhere: no such file"),
        (["--nproc", "two"], 2, "--nproc 'two' is neither a number nor auto"),
    ],
    ids=["batch", "loss", "missing", "nproc"],
)
def test_the_same_error_of_all_ranks_is_printed_once(
    change: list[str], code: int, said: str, start: Start, tmp_path: Path
) -> None:
    line = [*TRAINING["simclr"], "--log-every", 1, *CPU, "--nproc", 2, "--out", tmp_path / "f.safetensors", *change]
    how = start(line).end()
    assert (how.code, how.out) == (code, "")
    assert how.err.startswith("corecli train-ssl: error: ")
    assert said in how.err
    assert how.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_other_signals_to_the_launcher(number: int, start: Start, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    line = start(long_line(out))
    wait_for(logged(out), line)
    line.signal(number)
    how = line.end(25)
    assert (how.code, how.out, how.err.count("\n")) == (75, "", 1)
    assert "saved (the same line resumes)" in how.err


@pytest.mark.slow
def test_a_signal_to_the_launcher_keeps_finished_shards(inputs: Inputs, start: Start, tmp_path: Path) -> None:
    line = inputs.fill([*MAKING["sample"], "--rows", "::1", "--steps", 20])
    one, two = tmp_path / "one" / "out", tmp_path / "two" / "out"
    run_verb(World(), [*line, "--out", str(one)])
    launched = start([*line, "--nproc", 2, "--out", two])
    wait_for(lambda: len(list(folder_of(two).glob("shard-*"))) >= 2, launched)
    launched.signal(signal.SIGTERM)
    said = "corecli sample: error: stopped, finished shards are kept (the same line resumes)\n"
    assert launched.end(25) == Ended(75, "", said)
    assert start([*line, "--nproc", 2, "--out", two]).end() == Ended(0, f"{two}\n", "")
    assert contents(two.parent) == contents(one.parent)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_verb_that_saves_nothing_just_ends(number: signal.Signals, inputs: Inputs, start: Start) -> None:
    line = start([*inputs.fill(SCORING["probe"]), "--epochs", 10_000, "--nproc", 2])
    wait_for(lambda: len(list(children(line.pid))) >= 2, line)
    time.sleep(15)
    line.signal(number)
    how = line.end(25)
    assert (how.code, how.out) == (128 + number, "")
    assert how.err == ("corecli probe: error: interrupted, nothing saved\n" if number == signal.SIGINT else "")


@pytest.mark.slow
def test_a_second_sigint_to_the_launcher_hurries(start: Start, tmp_path: Path) -> None:
    """A step of this line takes long, so that the second comes before the first is answered."""
    out = tmp_path / "f.safetensors"
    line = start(
        [*long_line(out), "--data", "digits:32:train", "--backbone", "resnet18", "--batch-size", 512, "--stem", "cifar"]
    )
    wait_for((folder_of(out) / "run.json").exists, line)
    time.sleep(2)
    line.signal(signal.SIGINT)
    time.sleep(0.5)
    line.signal(signal.SIGINT)
    how = line.end(25)
    assert (how.code, how.out, how.err) == (130, "", "corecli train-ssl: error: interrupted, nothing saved\n")


def test_one_node_listens_on_itself_only(start: Start, tmp_path: Path) -> None:
    """The processes meet in a private folder, which is gone at the end."""
    (tmp_path / "meeting").mkdir()
    line = start(long_line(tmp_path / "f.safetensors"), environment={"TMPDIR": str(tmp_path / "meeting")})
    wait_for(logged(tmp_path / "f.safetensors"), line)
    addresses = {address for pid in (line.pid, *children(line.pid)) for address in listening(pid)}
    assert addresses == {"0100007F"}  # 127.0.0.1 in the order of bytes of /proc
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "meeting").glob("corecli-*")] == [0o700]
    line.signal(signal.SIGTERM)
    assert line.end(25).code == 75
    assert not list((tmp_path / "meeting").glob("corecli-*"))


def listening(pid: int) -> set[str]:
    """Return the addresses at which a process accepts connections, in hexadecimal."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    sockets = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


@pytest.mark.slow
def test_nothing_outlives_a_killed_launcher(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    line = start(long_line(out))
    wait_for(logged(out), line)
    workers = list(children(line.pid))
    assert len(workers) >= 2
    line.signal(signal.SIGKILL)
    assert line.end().code == -signal.SIGKILL
    until = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, workers))


@pytest.mark.slow
def test_nothing_outlives_a_launcher_killed_while_workers_start(start: Start, tmp_path: Path) -> None:
    line = start(long_line(tmp_path / "f.safetensors"))
    wait_for(lambda: len(list(children(line.pid))) >= 2, line)
    workers = list(children(line.pid))
    line.signal(signal.SIGKILL)
    line.end()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, workers))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "hint"),
    [("SIGKILL", ""), ("SIGBUS", " (another program truncated a file that was in use, or its disk failed)")],
)
def test_a_killed_worker_ends_the_others(start: Start, tmp_path: Path, number: str, hint: str) -> None:
    out = tmp_path / "f.safetensors"
    line = start(long_line(out))
    wait_for(logged(out), line)
    workers = list(children(line.pid))
    os.kill(workers[-1], signal.Signals[number])
    how = line.end(40)
    assert (how.code, how.out) == (128 + signal.Signals[number].value, "")
    assert how.err.endswith(f"was killed by {number}{hint}\n")
    assert how.err.count("\n") <= 2
    assert not any(map(alive, workers))


@pytest.mark.slow
def test_a_line_under_torchrun_joins_it(inputs: Inputs, start: Start, tmp_path: Path) -> None:
    line = inputs.fill([*TRAINING["simclr"], "--steps", 4, "--log-every", 1])
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    run_verb(World(), [*line, "--out", str(one)])
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "corecli")
    how = start([*line, "--out", two], program=torchrun).end()
    assert (how.code, how.out) == (0, f"{two}\n")
    assert 0 < difference(one, two) < TOLERANCE


@pytest.mark.slow
def test_two_nodes_stop_as_one(start: Start, tmp_path: Path) -> None:
    """Two launchers of one process each; only one of them receives the signal."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    out = tmp_path / "f.safetensors"
    line = [*long_line(out), "--nproc", 1, "--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{port}"]
    nodes = [start(line) for _ in range(2)]
    wait_for(logged(out), nodes[0])
    nodes[0].signal(signal.SIGTERM)
    ends = [node.end(25) for node in nodes]
    assert [(end.code, end.out) for end in ends] == [(75, "")] * 2
    assert "".join(end.err for end in ends).count("\n") == 1


STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def step_of_srun(rank: int, job: int) -> dict[str, str]:
    """Return the variables that srun sets for a task of a step, as far as they matter here."""
    return {**STEP, "SLURM_JOB_ID": str(job), "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


@pytest.mark.slow
def test_the_tasks_of_an_srun_step_join_each_other(inputs: Inputs, start: Start, tmp_path: Path) -> None:
    line = inputs.fill([*MAKING["extract"]])
    one, two = tmp_path / "one" / "out", tmp_path / "two" / "out"
    run_verb(World(), [*line, "--out", str(one)])
    job = random.randrange(1 << 30)
    tasks = [start([*line, "--out", two], environment=step_of_srun(rank, job)) for rank in range(2)]
    assert [task.end() for task in tasks] == [Ended(0, f"{two}\n", ""), Ended(0, "", "")]
    assert contents(two.parent) == contents(one.parent)


@pytest.mark.slow
def test_the_tasks_of_an_srun_step_fail_and_stop_as_one(start: Start, tmp_path: Path) -> None:
    job, out = random.randrange(1 << 30), tmp_path / "f.safetensors"
    line = [*long_line(out), "--nproc", 1]
    uneven = [*line, "--batch-size", 33, "--out", tmp_path / "none.safetensors"]
    tasks = [start(uneven, environment=step_of_srun(rank, job)) for rank in range(2)]
    ends = [task.end() for task in tasks]
    assert [end.code for end in ends] == [2, 2]
    assert "".join(end.err for end in ends).count("a batch of 33 cannot be split") == 1
    tasks = [start(line, environment=step_of_srun(rank, job + 1)) for rank in range(2)]
    wait_for(logged(out), tasks[0])
    tasks[1].signal(signal.SIGUSR1)  # one is enough, ranks agree
    ends = [task.end(25) for task in tasks]
    assert [(end.code, end.out) for end in ends] == [(75, "")] * 2
    assert "".join(end.err for end in ends).count("saved (the same line resumes)") == 1


@pytest.mark.parametrize(
    ("environment", "options", "elsewhere"),
    [
        ({}, [], False),
        ({}, ["--nproc", "2"], True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["--nproc", "2"], False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, ["--nproc", "2"], False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, [], False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ["--nproc", "2"], True),
        (STEP, ["--nproc", "2"], False),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, ["--nproc", "2"], True),
        (STEP, ["--nnodes", "2"], True),  # a task on each node, which is to start that node's processes
    ],
)
def test_where_a_line_runs(
    environment: dict[str, str], options: list[str], elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*STEP, "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = ["extract", "--data", "digits:", "--encoder", "f", "--out", "z", *options]
    assert launch.needed(build_app("extract")(line, prog_name="corecli", standalone_mode=False)) is elsewhere


def test_more_processes_than_gpus_are_refused(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    line = [*inputs.fill(MAKING["extract"]), "--out", "z", "--nproc", "2", "--device", "auto"]
    assert run_line(line) == 69
    assert (
        "2 processes need as many GPUs, and there are 1 (lower --nproc, or use --device cpu)" in capsys.readouterr().err
    )


def resumed(world: World, folder: Path) -> str:
    """What a rank says that looks for states in a folder of its own; only the one of rank 0 holds any."""
    mine = folder / str(world.rank)
    mine.mkdir()
    if world.is_main:
        checkpoint.save(mine / "state-000000005.safetensors", {"x": torch.ones(1)}, kind="state", step=5)
    try:
        Run(
            mine,
            label="test",
            world=world,
            total_steps=9,
            state=dict,
            restore=lambda *_: None,
            save_every_sec=60,
            log_every_steps=1,
            quiet=True,
        )
    except DataError as error:
        return str(error)
    return ""


def test_ranks_on_different_disks_are_refused(two_ranks: Any, tmp_path: Path) -> None:
    assert "processes see different states" in "".join(two_ranks.run(resumed, tmp_path))


def test_a_batch_script_outside_srun_runs_as_one_process(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "z.safetensors"
    assert run_line([*inputs.fill(MAKING["extract"]), "--out", str(out)]) == 0
    assert checkpoint.load(out)[0]["features"].equal(checkpoint.load(inputs.table)[0]["features"])
