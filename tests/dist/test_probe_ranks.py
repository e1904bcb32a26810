"""Classifiers that several processes train together are those that one process trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from corecli.base import registry
from corecli.commands.probe.classification import fit, prepare
from corecli.commands.probe.options import MODES, Config, mode_options
from corecli.commands.probe.problem import read_problem
from corecli.commands.probe.reader import Reader
from corecli.commands.probe.sets import tasks
from corecli.engine.dist import World
from corecli.nets.encoder import build_encoder


def trained(world: World, given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The classifier's weight and the encoder's first one, after a few steps on real digits."""
    config = Config(train=("digits:8:test",), test=("digits:8:test",), **given)
    encoder = build_encoder("resnet10-tiny", image_size=8, projector_dim=None).eval()
    reader = Reader(encoder=encoder, world=world, workers=0)
    problem = read_problem(tasks(config.train, (), config.test)[0], reader, seeds=range(1))
    mode = registry.load(MODES, config.mode)
    options = mode.Options(**mode_options(config))
    (fitted,) = fit(mode, options, prepare(problem, reader, on_images=True), range(1))
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
