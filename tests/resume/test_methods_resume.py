"""Every method, stopped and run again, ends byte for byte where it would have: queues, teachers, center, schedules.

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

from corecli.base import registry
from corecli.cli.app import run_line
from corecli.commands.train_ssl.learner import Learner
from corecli.data.imageset import write_set
from corecli.data.rows import make_rows

STEPS, STOP = 10, 5
NET = ["--backbone", "resnet10-tiny", "--projector-hidden", "32", "--projector-dim", "16", "--batch-size", "16"]
# Small, and such that what a method keeps matters: the queue wraps round before the stop and after it.
OPTIONS = {
    "byol": ["predictor-hidden=32", "momentum-start=0.5"],
    "dino": ["prototypes=24", "warmup-epochs=0.2", "momentum-start=0.5"],
    "moco": ["queue-size=35", "momentum-start=0.5"],
    "mocov3": ["predictor-hidden=32", "momentum-start=0.5"],
    "simsiam": ["predictor-hidden=32"],
    "stablerep": ["label-by=class"],
    "synclr": [
        "prototypes=24",
        "predictor-hidden=32",
        "patch-hidden=32",
        "patch-dim=16",
        "warmup-steps=8",
        "momentum-start=0.5",
    ],
}
# And what a method may meet: skipped branches of a ViT, members drawn anew in the epoch after the stop, small crops.
SETTINGS = {
    "synclr": ["--method", "synclr", "--backbone", "vit-micro/4", "--set", "label-by=class"],
    "synclr of groups, in parts": [
        *("--method", "synclr", "--backbone", "vit-micro/4", "--views", "1g2l", "--local-px", "4"),
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
    """What the lines under test read."""

    table: Path
    mixture: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Targets for psl, and 66 real images, four batches of an epoch, with up to three synthetic ones each."""
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


def work_of(name: str, inputs: Inputs, *, save_sec: int) -> Work:
    setting = SETTINGS.get(name, ["--method", name])
    method = setting[1]
    argv = ["train-ssl", "--data", inputs.mixture if "--views" in setting else "digits:8:test", *NET, *setting]
    argv += ["--steps", STEPS, "--optimizer", "adamw", "--lr", "1e-3", "--log-every", 5, "--save-sec", save_sec]
    argv += [word for option in OPTIONS.get(method, ()) for word in ("--set", option)]
    argv += ["--features", inputs.table] if method == "psl" else []
    return Work([*argv, "--device", "cpu"])


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_method_ends_as_if_left_alone(
    name: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    argv = {folder: [*map(str, work_of(name, inputs, save_sec=3600).line(folder))] for folder in (alone, stopped)}
    for folder in argv:
        folder.mkdir()
    assert run_line(argv[alone]) == 0
    learn = Learner.learn

    def signalled(self: Learner, step: int, images: torch.Tensor, rows: np.ndarray) -> dict[str, torch.Tensor]:
        if step + 1 == STOP:
            signal.raise_signal(signal.SIGTERM)
        return learn(self, step, images, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", signalled)
        assert run_line(argv[stopped]) == 75
    assert (stopped / "out.safetensors.d" / f"state-{STOP:09d}.safetensors").exists()
    assert run_line(argv[stopped]) == 0
    assert contents(stopped) == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_killed_three_times_ends_as_if_left_alone(
    name: str, inputs: Inputs, start: Start, tmp_path: Path
) -> None:
    work = work_of(name, inputs, save_sec=0)
    survives(name, work, start, left_alone(work, start, tmp_path / "alone"), tmp_path, kills=3, seed=4)
