"""Every method, stopped and run again, ends with the bytes of an uninterrupted run.

The default tests stop a run in this process; the slow ones kill runs at random moments.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Start, Work, left_alone, survives
from lines import contents
from methods import tiny
from steps import before_step

from corecli.base import registry
from corecli.cli.app import run_line
from corecli.data.imageset import write_set
from corecli.data.rows import make_rows

STEPS, STOP = 10, 5
NET = ["--projector-hidden", "32", "--projector-dim", "16", "--batch-size", "16"]
# Settings beyond a method's TINY: skipped branches of a ViT, members drawn anew in the epoch after the stop, small
# crops. The queue of moco's TINY wraps round before the stop and after it.
SETTINGS = {
    "stablerep": ["--method", "stablerep", "--set", "label-by=class"],
    "synclr": ["--method", "synclr", "--set", "label-by=class"],
    "synclr of groups, in parts": [
        *("--method", "synclr", "--views", "1g2l", "--local-px", "4"),
        *("--images-per-group", "2", "--accumulate", "2", "--drop-path", "0.3"),
    ],
    "byol on a vit": [
        *("--method", "byol", "--backbone", "vit-micro/4", "--drop-path", "0.3", "--layer-decay", "0.6"),
    ],
    "moco of pairs": ["--method", "moco", "--views", "real:1g,mixed:1g"],
    "dino of pairs": ["--method", "dino", "--views", "real:1g3l,synthetic:1g1l", "--local-px", "4"],
}
NAMES = tuple(dict.fromkeys((*registry.choices("ssl"), *SETTINGS)))


@dataclass(frozen=True)
class Inputs:
    """Files that the lines under test read."""

    table: Path
    mixture: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Targets for psl, and 66 real images (four batches an epoch) with up to three synthetic images each."""
    folder = tmp_path_factory.mktemp("inputs")
    encoder, table, mixture = folder / "f.safetensors", folder / "z.safetensors", folder / "mix.json"
    real, synthetic = folder / "real.safetensors", folder / "synthetic.safetensors"
    keys = [f"{i % 3}/{i:02d}" for i in range(66)]
    twins = [f"{key}@{v}" for i, key in enumerate(keys) for v in range(1, 1 + i % 4)]
    for path, names in ((real, keys), (synthetic, twins)):
        images = np.random.default_rng(len(names)).integers(0, 256, (len(names), 3, 8, 8), dtype=np.uint8)
        rows = make_rows(names, labels=np.array([int(name[0]) for name in names]))
        write_set(path, rows, [torch.from_numpy(images)], class_names=tuple("012"), header={})
    digits = ("--data", "digits:8:test")
    for argv in (
        ("train-ssl", *digits, *NET, "--steps", "1", "--out", encoder),
        ("extract", *digits, "--encoder", encoder, "--layer", "projector", "--out", table),
        ("inflate", "--real", real, "--synthetic", synthetic, "--out", mixture),
    ):
        assert run_line([*map(str, argv), "-q", "--device", "cpu"]) == 0
    return Inputs(table, mixture)


def options_of(method: str) -> list[str]:
    """The options of a tiny method, with a teacher that moves far in few steps."""
    averages = "momentum_start" in registry.constants("ssl", method)["Options"]
    return [*tiny(method)["set"], *(["momentum-start=0.5"] if averages else [])]


def work_of(name: str, inputs: Inputs, *, save_sec: int) -> Work:
    setting = SETTINGS.get(name, ["--method", name])
    method = setting[1]
    data = inputs.mixture if "--views" in setting else "digits:8:test"
    argv = ["train-ssl", "--data", data, *NET, "--backbone", tiny(method)["backbone"], *setting]
    argv += ["--steps", STEPS, "--optimizer", "adamw", "--lr", "1e-3", "--log-every", 5, "--save-sec", save_sec]
    argv += [word for option in options_of(method) for word in ("--set", option)]
    argv += ["--features", inputs.table] if method == "psl" else []
    return Work([*argv, "--device", "cpu"])


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_method_ends_with_the_bytes_of_an_uninterrupted_run(
    name: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    argv = {folder: [*map(str, work_of(name, inputs, save_sec=3600).line(folder))] for folder in (alone, stopped)}
    for folder in argv:
        folder.mkdir()
    assert run_line(argv[alone]) == 0
    with monkeypatch.context() as patch:
        before_step(patch, STOP - 1, lambda: signal.raise_signal(signal.SIGTERM))
        assert run_line(argv[stopped]) == 75
    assert (stopped / "out.safetensors.d" / f"state-{STOP:09d}.safetensors").exists()
    assert run_line(argv[stopped]) == 0
    assert contents(stopped) == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_killed_three_times_ends_with_the_bytes_of_an_uninterrupted_run(
    name: str, inputs: Inputs, start: Start, tmp_path: Path
) -> None:
    work = work_of(name, inputs, save_sec=0)
    survives(name, work, start, left_alone(work, start, tmp_path / "alone"), tmp_path, kills=3, seed=4)
