"""SynCLR and StableRep on the command line: images of captions, switches, and errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corecli.commands.train_ssl.presets import PRESETS
from corecli.data.imageset import write_set
from corecli.data.rows import make_rows
from corecli.nets.encoder import load_encoder
from corecli.ssl.parts.method import Batch
from corecli.ssl.synclr import SynCLR

NET = "--backbone vit-micro/4 --projector-hidden 32 --projector-dim 16 --batch-size 16 --steps 2 --optimizer adamw"
HEADS = "--set predictor-hidden=32 --set patch-hidden=32 --set patch-dim=16 --set prototypes=16"
SYNCLR = f"train-ssl --method synclr {NET} {HEADS} --lr 1e-3 --device cpu --force --out o.safetensors"
STABLEREP = f"train-ssl --method stablerep {NET} --lr 1e-3 --device cpu --force --out o.safetensors"


def write_captioned(path: Path, sizes: Sequence[int]) -> Path:
    """Write images named as by `sample`, such as `cap003@1`: sizes[i] images of caption i, numbered from 0."""
    keys = [f"cap{i:03d}@{variant}" for i, size in enumerate(sizes) for variant in range(size)]
    images = np.random.default_rng(0).integers(0, 256, (len(keys), 3, 8, 8), dtype=np.uint8)
    write_set(path, make_rows(keys), [torch.from_numpy(images)], class_names=(), header={})
    return path


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    return write_captioned(tmp_path / "captioned.safetensors", [4, 4, 3, 4, 6, 1, 4, 4, 2, 8])


def test_positives_of_a_batch_are_images_of_one_caption(
    run: Any, captioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    loss = SynCLR.loss

    def watched(self: SynCLR, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return loss(self, batch)

    monkeypatch.setattr(SynCLR, "loss", watched)
    ran = run(*SYNCLR.split(), "--data", captioned, "--images-per-group", "4")
    assert ran.code == 0, ran.err
    assert "short groups 3" in ran.err
    assert len(seen) == 2
    for batch in seen:
        sets = batch.groups.view(4, 4)
        assert (sets == sets[:, :1]).all()
        assert len(batch.views) == 1
        assert len(batch.local_views) == 4


@pytest.mark.parametrize(
    "switches",
    [
        "--set ema=false --set ibot=0 --views 1g",
        "--set ibot=0 --views 1g",
        "--views 1g",
        "--set ibot=0",
        "--set label-by=image --views 2g",
        "--precision bf16",
    ],
)
def test_every_term_can_be_switched_off(run: Any, captioned: Path, switches: str) -> None:
    ran = run(*SYNCLR.split(), "--data", captioned, "--images-per-group", "4", *switches.split())
    assert ran.code == 0, ran.err
    assert all(p.isfinite().all() for p in load_encoder("o.safetensors").parameters())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{STABLEREP} --set label-by=image", "label-by=image needs 2 views of an image"),
        (f"{STABLEREP} --set label-by=caption", "label-by"),
        (f"{STABLEREP} --set label-by=class", "no label"),
        (f"{SYNCLR} --set ema=false", "the patch loss needs a teacher"),
        (f"{SYNCLR} --backbone resnet10-tiny", "has no patches to mask"),
        (f"{SYNCLR} --set masked-images=0", "must be above 0 and at most 1"),
        (f"{SYNCLR} --set momentum-start=1.5", "momentum"),
        (f"{SYNCLR} --images-per-group 3", "--batch-size 16 is not a multiple of --images-per-group 3"),
        (f"{SYNCLR} --images-per-group 4 --accumulate 8", "--batch-size 16 in 8 parts is not a multiple"),
        (f"{SYNCLR} --accumulate 3", "--batch-size 16 is not a multiple of --accumulate 3"),
        (f"{SYNCLR} --images-per-group 4 --guard", "does not work with --guard"),
        (f"{SYNCLR} --method moco --accumulate 2 --set queue-size=32", "option of moco"),
        (
            "train-ssl --method moco --accumulate 2 --out o.pt --batch-size 16 --steps 2",
            "--accumulate does not work with moco",
        ),
    ],
)
def test_invalid_combinations_are_errors(run: Any, captioned: Path, line: str, message: str) -> None:
    ran = run(*line.split(), "--data", captioned)
    assert ran.code in (2, 65)
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_images_alone_in_their_group_are_an_error_or_counted(run: Any, captioned: Path, tmp_path: Path) -> None:
    alone = write_captioned(tmp_path / "alone.safetensors", [1] * 32)
    ran = run(*STABLEREP.split(), "--data", alone)
    assert ran.code == 65
    assert "no positive pairs: every group has one image" in ran.err

    def planned(line: str, data: Path) -> dict[str, Any]:
        return json.loads(run(*line.split(), "--data", data, "--dry-run", "--json").out)

    assert planned(STABLEREP, captioned)["alone_in_their_group"] == 1
    assert planned(SYNCLR, alone)["alone_in_their_group"] == 32  # whose local crops still meet the global one
    grouped = planned(f"{STABLEREP} --images-per-group 4", captioned)
    assert (grouped["slots"], grouped["short_groups"]) == (4 * 11, 3)
    assert "alone_in_their_group" not in grouped
    assert "alone_in_their_group" not in planned(f"{STABLEREP} --views 2g", captioned)


def test_too_many_prototypes_give_one_warning(run: Any, captioned: Path) -> None:
    warning = "warning: 999 prototypes exceed the 16 masked patches of a batch"
    assert run(*SYNCLR.split(), "--data", captioned, "--set", "prototypes=999").err.count(warning) == 1
    assert "warning" not in run(*SYNCLR.split(), "--data", captioned).err


def test_presets_are_read(run: Any, captioned: Path) -> None:
    names = [name for name in PRESETS if "synclr" in name or "stablerep" in name]
    assert len(names) == 12
    for name in names:
        line = ["train-ssl", "--preset", name, "--data", "digits:8:train", "--out", "o.pt", "--dry-run", "--json"]
        line += ["--batch-size", "64", "--steps", "1000", "--warmup", "10"]
        assert run(*line).code == 0


def test_accumulation_gives_the_gradient_of_the_whole_batch_and_one_teacher_update(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised = f"train-ssl --method supervised {NET} --data digits:8:test --lr 1e-3 --device cpu --optimizer sgd"
    weights = []
    for parts in ("1", "4"):
        assert run(*supervised.split(), "--accumulate", parts, "--out", f"{parts}.pt").code == 0
        weights.append(torch.cat([p.flatten() for p in load_encoder(f"{parts}.pt").parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    followed: list[tuple[int, int]] = []
    monkeypatch.setattr(SynCLR, "after_step", lambda self, step, total: followed.append((step, total)))
    assert run(*SYNCLR.split(), "--set", "label-by=class", "--data", "digits:8:test", "--accumulate", "4").code == 0
    assert followed == [(0, 2), (1, 2)]
