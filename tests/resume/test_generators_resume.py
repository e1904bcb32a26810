"""Every family of generators, stopped and run again, ends byte for byte where it would have: all networks, optimizers
and averages of it.

The default tests stop a run in this process; the slow ones kill runs at random moments.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Start, Work, ended, left_alone, survives
from learners import at_step
from lines import Fork, Line, contents, wait_for

from corecli.cli.app import run_line
from corecli.data.imageset import open_set, write_set
from corecli.data.rows import make_rows

STEPS, STOP = 10, 5
# Small, and such that what a family keeps matters: the average of the GAN begins after the stop, with the second epoch.
SETTINGS = {
    "adm": [
        *("--arch", "adm", "--set", "channels=8", "--set", "channel_mult=1,2", "--set", "head_channels=8"),
        *("--set", "num_res_blocks=1", "--set", "attention_resolutions=4"),  # dropout and a learned variance are on
    ],
    "captions": ["--arch", "dit", "--set", "size=tiny", "--set", "patch=4"],
    "dit": ["--arch", "dit", "--set", "size=tiny", "--set", "patch=2"],
    "latent dit": ["--arch", "dit", "--set", "size=tiny", "--set", "patch=2", "--objective", "flow"],
    "power averages": [
        *("--arch", "dit", "--set", "size=tiny", "--set", "patch=4", "--objective", "edm"),
        *("--ema", "power", "--ema-snapshots", "5"),
    ],
    "icgan": [
        *("--arch", "icgan", "--set", "channels=8", "--set", "channel_mult=2,2", "--set", "discriminator_mult=2,2"),
        *("--set", "z_dim=8", "--set", "condition_width=16", "--set", "attention_px=4", "--set", "neighbours=5"),
        *("--set", "discriminator_steps=2", "--set", "ema_start=6"),
    ],
    "autoencoder": ["--arch", "autoencoder", "--set", "channels=8", "--set", "channel_mult=1,2"],
    "vq autoencoder": [
        *("--arch", "autoencoder", "--set", "kind=vq", "--set", "codes=16"),
        *("--set", "channels=8", "--set", "channel_mult=1,2"),
    ],
    "ldm": [
        *("--arch", "ldm", "--set", "channels=8", "--set", "channel_mult=1,2", "--set", "head_channels=8"),
        *("--set", "num_res_blocks=1", "--set", "attention_resolutions=2", "--set", "context_dim=8"),
    ],
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the digits, of a random encoder; beside them is an autoencoder that is hardly trained."""
    folder = tmp_path_factory.mktemp("inputs")
    encoder, table = folder / "f.safetensors", folder / "z.safetensors"
    digits = ("--data", "digits:8:test", "--device", "cpu", "-q")
    net = ("--backbone", "resnet10-tiny", "--projector-hidden", 32, "--projector-dim", 16, "--batch-size", 16)
    make("train-ssl", *digits, *net, "--steps", 1, "--out", encoder)
    make("extract", *digits, "--encoder", encoder, "--layer", "projector", "--out", table)
    short = ("--steps", 2, "--batch-size", 16, "--preview-every", 0)
    make("train-gen", *digits, *SETTINGS["autoencoder"], *short, "--out", first_stage_beside(table))
    return table


def captions_beside(table: Path) -> Path:
    """Captions of the digits, of different lengths."""
    path = table.with_name("captions.jsonl")
    keys = open_set("digits:8:test").rows.keys
    lines = (json.dumps({"id": key, "caption": f"number {i}, of class {key}"}) for i, key in enumerate(keys))
    path.write_text("\n".join(lines))
    return path


def first_stage_beside(table: Path) -> Path:
    return table.with_name("ae.safetensors")


def make(*argv: object) -> int:
    return run_line([*map(str, argv)])


def work_of(name: str, table: Path, *, save_sec: int) -> Work:
    """355 images in batches of 64: the sixth step begins the second epoch."""
    argv = ["train-gen", "--data", "digits:8:test", *SETTINGS[name], "--batch-size", 64]
    condition = ["--captions", captions_beside(table)] if name == "captions" else ["--features", table]
    argv += [] if "autoencoder" in name else condition
    argv += ["--first-stage", first_stage_beside(table)] if name in ("ldm", "latent dit") else []
    argv += ["--steps", STEPS, "--log-every", 5, "--save-sec", save_sec, "--preview-every", 0, "--device", "cpu"]
    return Work(argv)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_family_ends_as_if_left_alone(
    name: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    for folder in (alone, stopped):
        folder.mkdir()
    lines = {folder: work_of(name, table, save_sec=3600).line(folder) for folder in (alone, stopped)}
    assert make(*lines[alone]) == 0
    with monkeypatch.context() as patch:
        at_step(patch, STOP - 1, lambda _: signal.raise_signal(signal.SIGTERM))
        assert make(*lines[stopped]) == 75
    assert (stopped / "out.safetensors.d" / f"state-{STOP:09d}.safetensors").exists()
    assert make(*lines[stopped]) == 0
    assert contents(stopped) == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_family_killed_three_times_ends_as_if_left_alone(
    name: str, table: Path, start: Start, tmp_path: Path
) -> None:
    work = work_of(name, table, save_sec=0)
    survives(name, work, start, left_alone(work, start, tmp_path / "alone"), tmp_path, kills=3, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_latents_killed_in_the_middle_of_their_encoding_are_kept(
    num_processes: int, table: Path, start: Start, tmp_path: Path
) -> None:
    """10,000 images are three shards; those that are finished are not made again."""
    many = tmp_path / "many.safetensors"
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10_000, 3, 8, 8), dtype=np.uint8))
    write_set(many, make_rows([f"{i:05d}" for i in range(10_000)]), [images], class_names=(), header={})
    argv = ["train-gen", "--data", many, *SETTINGS["latent dit"], "--first-stage", first_stage_beside(table)]
    work = Work([*argv, "--batch-size", 64, "--steps", 2, "--preview-every", 0, "--device", "cpu"])
    alone = left_alone(work, start, tmp_path / "alone")
    (tmp_path / "killed").mkdir()
    argv = work.line(tmp_path / "killed")

    def started() -> Line | Fork:
        return start(argv) if num_processes == 1 else Line([*argv, "--nproc", 2], folder=tmp_path / "streams")

    def shards() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in tmp_path.glob("killed/*.d/latents-*.d/shard-*")}

    line = started()
    wait_for(shards, line)
    line.signal(signal.SIGKILL)
    assert line.end().code == -signal.SIGKILL
    kept = shards()
    assert kept and not list(tmp_path.glob("killed/*.d/latents-*.safetensors"))
    line = started()
    wait_for(lambda: len(shards()) > len(kept), line)
    assert kept.items() <= shards().items()
    if num_processes == 1:
        ended(line.end(), tmp_path / "killed", alone)
    else:
        assert line.end().code == 0
