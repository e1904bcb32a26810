"""Classifiers that several processes train together are those that one process trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from corecli.commands.probe.problem import read_problem
from corecli.commands.probe.sets import tasks
from corecli.commands.probe.training import train_on_images
from corecli.commands.probe.options import Config
from corecli.engine.dist import World
from corecli.nets.encoder import build_encoder


def trained(world: World, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The classifier's weight and the encoder's first one, after a few steps on real digits."""
    config = Config(train=("digits:8:test",), test=("digits:8:test",), encoder="-", quiet=True, workers="0", **given)
    encoder = build_encoder("resnet10-tiny", image_size=8, projector_dim=None).eval()
    problem = read_problem(config, tasks(config.train, (), config.test)[0], encoder, 1)
    (fitted,) = train_on_images(config, problem, encoder, world)
    return fitted.classifier.weight.contiguous(), (fitted.encoder or encoder).backbone.conv1.weight.detach()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "given",
    [
        {"mode": "sgd", "epochs": 2, "train_batch": 64, "head": "batchnorm", "lr": 1.0},
        {"mode": "finetune", "epochs": 1, "warmup_epochs": 0, "train_batch": 64, "optimizer": "sgd", "lr": 0.05},
        {
            "mode": "finetune",
            "epochs": 1,
            "warmup_epochs": 0,
            "train_batch": 64,
            "optimizer": "sgd",
            "lr": 0.05,
            "mixup": 0.8,
            "cutmix": 1.0,
            "rand_augment": 9.0,
            "erasing": 0.5,
            "ema": 0.9,
        },
    ],
    ids=lambda given: given["mode"] + ("-mixed" if "mixup" in given else ""),
)
def test_two_processes_train_what_one_does(two_ranks: Any, given: dict[str, Any]) -> None:
    alone = trained(World(), given)
    for found in two_ranks.run(trained, given):
        for mine, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)
