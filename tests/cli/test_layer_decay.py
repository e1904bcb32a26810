"""`train-ssl --layer-decay`: the step of each weight against a step without it, stages, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from corecli.nets.encoder import load_encoder

NET = "--backbone vit-micro/4 --projector-hidden 16 --projector-dim 8 --batch-size 16"
PLAIN = "--optimizer sgd --momentum 0 --weight-decay 0 --warmup 0 --device cpu --quiet --data digits:8:test"
LINE = f"train-ssl {NET} {PLAIN} --steps 1"


def train(run: Any, out: str, line: str) -> dict[str, torch.Tensor]:
    ran = run(*line.split(), "--out", out)
    assert ran.code == 0, ran.err
    return load_encoder(out).state_dict()


def test_each_block_moves_by_its_learning_rate(run: Any) -> None:
    start, plain, scaled = (
        train(run, f"{i}.pt", f"{LINE} {more}")
        for i, more in enumerate(("--lr 0", "--lr 1", "--lr 1 --layer-decay 0.5"))
    )
    parts = {"backbone.cls_token": 1 / 32, "backbone.pos_embed": 1 / 32, "backbone.patch_embed": 1 / 32}
    parts |= {f"backbone.blocks.{i}": 0.5 ** (4 - i) for i in range(4)}
    parts |= {"backbone.norm": 1, "projector": 1}
    for name, weight in start.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            (part,) = (part for begin, part in parts.items() if name.startswith(begin))
            torch.testing.assert_close(scaled[name] - weight, part * (plain[name] - weight), rtol=1e-3, atol=1e-6)
    assert not torch.equal(plain["backbone.blocks.0.attn.qkv.weight"], start["backbone.blocks.0.attn.qkv.weight"])


def test_layer_decay_applies_in_every_stage(run: Any) -> None:
    """With a decay of 0, all weights up to the last block are constant, also in the second stage."""
    stages = f"train-ssl {NET} {PLAIN} --stage simclr:1 --stage byol:1 --layer-decay 0"
    start, moved = train(run, "0.pt", f"{LINE} --lr 0"), train(run, "1.pt", f"{stages} --lr 1")
    still = {name for name in start if name.startswith("backbone.") and torch.equal(moved[name], start[name])}
    assert still == {name for name in start if name.startswith("backbone.") and ".norm." not in name}


def test_a_decay_of_one_changes_nothing(run: Any) -> None:
    adamw = f"{LINE} --optimizer adamw --lr 1e-2 --steps 3"
    for out, more in (("0.safetensors", ""), ("1.safetensors", "--layer-decay 1")):
        train(run, out, f"{adamw} {more}")
    assert Path("0.safetensors").read_bytes() == Path("1.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--backbone resnet10-tiny --layer-decay 0.5", "--layer-decay needs a vision transformer (drop --layer-decay)"),
        ("--layer-decay 1.5", "layer-decay"),
    ],
)
def test_invalid_combinations_are_errors(run: Any, more: str, message: str) -> None:
    ran = run(*LINE.split(), *more.split(), "--out", "o.pt")
    assert ran.code == 2
    assert message in ran.err
    assert list(Path().iterdir()) == []
