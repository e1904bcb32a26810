"""Every method, stopped and run again, ends byte for byte where it would have: queues, teachers, centre, schedules."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lines import contents

from corecli.base import registry
from corecli.cli import run_line
from corecli.commands._learner import Learner

STEPS, STOP = 10, 5
NET = ["--backbone", "resnet10-tiny", "--projector-hidden", "32", "--projector-dim", "16", "--batch-size", "16"]
# Small, and such that what a method keeps matters: the queue wraps round before the stop and after it.
OPTIONS = {
    "byol": ["predictor-hidden=32", "momentum-start=0.5"],
    "dino": ["prototypes=24", "warmup-epochs=0.2", "momentum-start=0.5"],
    "moco": ["queue-size=35", "momentum-start=0.5"],
    "mocov3": ["predictor-hidden=32", "momentum-start=0.5"],
    "simsiam": ["predictor-hidden=32"],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Targets for psl."""
    folder = tmp_path_factory.mktemp("table")
    train = ["train-ssl", "--data", "digits:8:test", *NET, "--steps", "1", "--out", str(folder / "f.safetensors")]
    extract = ["extract", "--data", "digits:8:test", "--encoder", str(folder / "f.safetensors")]
    for argv in (train, [*extract, "--layer", "projector", "--out", str(folder / "z.safetensors")]):
        assert run_line([*argv, "-q", "--device", "cpu"]) == 0
    return folder / "z.safetensors"


def line_of(name: str, table: Path, folder: Path) -> list[str]:
    argv = ["train-ssl", "--data", "digits:8:test", "--method", name, *NET, "--steps", str(STEPS)]
    argv += ["--optimizer", "adamw", "--lr", "1e-3", "--log-every", "10", "--save-sec", "3600", "-q", "--device", "cpu"]
    argv += [word for option in OPTIONS.get(name, ()) for word in ("--set", option)]
    argv += ["--features", str(table)] if name == "psl" else []
    return [*argv, "--out", str(folder / "out.safetensors")]


@pytest.mark.parametrize("name", registry.choices("ssl"))
def test_a_stopped_method_ends_as_if_left_alone(
    name: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    for folder in (alone, stopped):
        folder.mkdir()
    assert run_line(line_of(name, table, alone)) == 0
    learn = Learner.learn

    def signalled(self: Learner, step: int, images: torch.Tensor, rows: np.ndarray) -> dict[str, torch.Tensor]:
        if step + 1 == STOP:
            signal.raise_signal(signal.SIGTERM)
        return learn(self, step, images, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "learn", signalled)
        assert run_line(line_of(name, table, stopped)) == 75
    assert (stopped / "out.safetensors.d" / f"state-{STOP:09d}.safetensors").exists()
    assert run_line(line_of(name, table, stopped)) == 0
    assert contents(stopped) == contents(alone)
