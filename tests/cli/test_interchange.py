"""Encoders to and from other libraries, through the verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from ran import Run
from torch import nn

from corecli.base import checkpoint
from corecli.nets.encoder import load_encoder

TRAIN = "--steps 2 --batch-size 16 --projector-dim 8 --projector-hidden 16 --quiet"


def test_export(run: Run, tiny: Path) -> None:
    line = ("extract", "--encoder", tiny / "f.safetensors", "--export", "b.pt")
    ran = run(*line, "--json")
    assert (ran.code, json.loads(ran.out)) == (0, {"path": "b.pt", "backbone": "resnet10-tiny", "dim": 256})
    weights = torch.load("b.pt", weights_only=True)
    own, _ = checkpoint.load(tiny / "f.safetensors")
    assert set(weights) == {n.removeprefix("backbone.") for n in own if n.startswith("backbone.")}
    assert run(*line).err == "corecli extract: already there, left alone\n"
    other = run("extract", "--encoder", tiny / "f1.safetensors", "--export", "b.pt")
    assert (other.code, "exists with another config: export" in other.err) == (73, True)
    assert run("extract", "--encoder", "b.pt", "--data", "digits:8:test", "--out", "z", "-q").code == 0
    dry = json.loads(run(*line[:-1], "new.pt", "--dry-run", "--json").out)
    assert dry["out"] == "new.pt"
    assert not Path("new.pt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--export b --data digits:8:test", "--export reads no images, so --data does not apply (drop one of them)"),
        ("--export b --out z", "--export reads no images, so --out does not apply"),
        ("--export b --layer backbone", "--export reads no images, so --layer does not apply"),
        ("--export b --image-size 8", "--export reads no images, so --image-size does not apply"),
        ("--export b --pool mean", "--export reads no images, so --pool does not apply"),
        ("--out z", "--data is required (or use --export FILE to write the backbone only)"),
        ("--data digits:8:test", "--out is required"),
    ],
)
def test_images_or_an_export(run: Run, tiny: Path, words: str, message: str) -> None:
    ran = run("extract", "--encoder", tiny / "f.safetensors", *words.split())
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not list(Path().iterdir())


def test_nothing_is_exported_over_a_directory(run: Run, tiny: Path) -> None:
    Path("b").mkdir()
    assert run("extract", "--encoder", tiny / "f.safetensors", "--export", "b").code == 73


def foreign_resnet(px: int) -> nn.Module:
    return torchvision.models.resnet18()


def foreign_vit(px: int) -> nn.Module:
    vit: Any = pytest.importorskip("timm.models.vision_transformer").VisionTransformer
    return vit(embed_dim=64, depth=4, num_heads=2, patch_size=4, img_size=px, num_classes=3)


@pytest.mark.parametrize(("build", "dim"), [(foreign_resnet, 512), (foreign_vit, 64)])
def test_foreign_encoders_are_trained_on_at_another_size(run: Run, build: Any, dim: int) -> None:
    torch.manual_seed(0)
    torch.save({"state_dict": {f"module.{n}": t for n, t in build(16).state_dict().items()}}, "foreign.pth")
    ran = run(
        "train-ssl",
        "--init",
        "foreign.pth",
        "--data",
        "digits:8:test",
        "--method",
        "simclr",
        *TRAIN.split(),
        "--out",
        "f.safetensors",
    )
    assert ran.code == 0, ran.err
    before, after = load_encoder("foreign.pth"), load_encoder("f.safetensors")
    assert (after.spec["backbone"], after.num_features) == (before.spec["backbone"], dim)
    theirs = dict(before.backbone.named_parameters())
    assert any(not torch.equal(p, theirs[name]) for name, p in after.backbone.named_parameters())
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert after.encode(images).shape == (2, dim)
    assert run("extract", "--encoder", "f.safetensors", "--export", "b.safetensors", "-q").code == 0
    net: Any = build(8)
    net.fc = net.head = nn.Identity()
    net.load_state_dict(checkpoint.load_tensors(Path("b.safetensors")), strict=True)
