"""Training a classifier on views, and the whole network: rates, depths, and equality with plain loops."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corecli.commands.probe import training
from corecli.commands.probe.options import PRESETS, Config
from corecli.engine.dist import World
from corecli.nets.encoder import build_encoder, load_encoder, save_encoder

NUM, DIM, CLASSES = 96, 12, 3


def config(**given: Any) -> Config:
    return Config(**{"train": ("digits:8:test",), "test": ("digits:8:test",), "quiet": True, **given})


def problem(num: int) -> Any:
    space = [None] * CLASSES
    return SimpleNamespace(numbers=torch.arange(num) % CLASSES, space=space, subsets=(torch.arange(num),))


def features() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(NUM, DIM, generator=g) * torch.linspace(0.1, 5, DIM) + 1


def plain_loop(options: Config, steps: int, size: int, lr: Any, step_of: Any, norm: bool = False) -> nn.Module:
    """The same batches and first weights, everything else by torch's own classes."""
    plan = training.Plan.of(options, NUM, World())
    order = training._order(torch.arange(NUM), plan, 5)
    linear = training._new_linear(options, DIM, CLASSES, 5)
    net = nn.Sequential(nn.BatchNorm1d(DIM, affine=False, eps=1e-6) if norm else nn.Identity(), linear)
    state: dict[Any, Any] = {}
    for step in range(steps):
        rows = torch.from_numpy(order.batch(step))
        assert len(rows) == size
        net.zero_grad()
        F.cross_entropy(net(features()[rows]), rows % CLASSES).backward()
        with torch.no_grad():
            step_of(linear, lr(step), state)
    return net.eval()


def sgd(linear: nn.Linear, lr: float, state: dict[Any, Any]) -> None:
    for p in linear.parameters():
        state[p] = 0.9 * state.get(p, 0) + p.grad
        p -= lr * state[p]


def lars(adapts: bool) -> Any:
    """You et al. 2017, without decay and clipping: the bias's step is plain unless `adapts`, or it is 0."""

    def step(linear: nn.Linear, lr: float, state: dict[Any, Any]) -> None:
        for p in linear.parameters():
            plain = (p.ndim == 1 and not adapts) or float(p.norm()) == 0
            trust = 1.0 if plain else 0.001 * float(p.norm()) / (float(p.grad.norm()) + 1e-8)
            state[p] = 0.9 * state.get(p, 0) + trust * p.grad
            p -= lr * state[p]

    return step


def cosine(peak: float, steps: int) -> Any:
    return lambda step: peak * 0.5 * (1 + math.cos(math.pi * step / steps))


PROTOCOLS = {  # 96 rows: three batches of 32 an epoch
    "sgd": ({"lr": 0.8}, sgd, cosine(0.8 * 32 / 256, 30), False),
    "steps": ({"lr": 0.8, "schedule": "steps"}, sgd, lambda s: 0.1 * 0.1 ** ((s >= 18) + (s >= 24)), False),
    "lars": ({"lr": 80.0, "optimizer": "lars"}, lars(False), cosine(10, 30), False),
    "lars on the bias": ({"lr": 80.0, "optimizer": "lars", "lars_bias": "adapt"}, lars(True), cosine(10, 30), False),
    "batchnorm": ({"lr": 0.8, "head": "batchnorm"}, sgd, cosine(0.1, 30), True),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_classifier_on_features_equals_a_plain_loop(name: str) -> None:
    given, step_of, lr, norm = PROTOCOLS[name]
    options = config(mode="sgd", augment="none", train_batch=32, epochs=10, **given)
    found = training.train_on_features(options, problem(NUM), features(), torch.arange(NUM), 5)
    expected = plain_loop(options, 30, 32, lr, step_of, norm)
    torch.testing.assert_close(found.logits(features()), expected(features()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.weight.T, training._new_linear(options, DIM, CLASSES, 5).weight)


def test_a_rate_is_for_256_images_and_a_batch_no_larger_than_the_set() -> None:
    plan = training.Plan.of(config(mode="sgd", lr=0.1, train_batch=16384, epochs=90, warmup_epochs=10), 5000, World())
    assert (plan.batch_size, plan.total_steps, plan.warmup_steps) == (5000, 90, 10)
    assert plan.rate(10) == pytest.approx(0.1 * 5000 / 256)
    assert plan.rate(0) < plan.rate(9) < plan.rate(10) > plan.rate(11)
    assert training.Plan.of(config(mode="sgd"), 1001, World(size=4)).batch_size == 256
    assert training.Plan.of(config(mode="sgd"), 11, World(size=4)).batch_size == 8


def test_presets_are_the_published_protocols() -> None:
    told = {
        name: (p["optimizer"], p["lr"], p["train_batch"], p["epochs"], p["schedule"])
        for name, p in PRESETS.items()
        if p["mode"] == "sgd"
    }
    assert told == {
        "simclr": ("sgd", 0.1, 4096, 90, "cosine"),
        "solo": ("sgd", 1.0, 256, 100, "steps"),
        "genssl": ("lars", 0.1, 2048, 100, "cosine"),
        "mocov3": ("sgd", 0.1, 1024, 90, "cosine"),
        "mae": ("lars", 0.1, 16384, 90, "cosine"),
    }
    assert PRESETS["mae"]["head"] == "batchnorm"
    assert PRESETS["mae"]["warmup_epochs"] == 10


# Fine-tuning


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "f.safetensors"
    save_encoder(path, build_encoder("resnet10-tiny", image_size=8, projector_dim=None))
    return path


def of_digits(options: Config, net: Any) -> Any:
    from corecli.commands.probe.problem import read_problem
    from corecli.commands.probe.sets import tasks

    return read_problem(options, tasks(options.train, (), options.test)[0], net, 1)


def test_finetuning_steps_each_layer_by_its_rate(encoder: Path) -> None:
    """One step of SGD with weights so large that only the rates differ: weight - gradient * lr * decay^(5 - depth)."""
    given = {"mode": "finetune", "epochs": 1, "warmup_epochs": 0, "optimizer": "sgd", "augment": "none"}
    options = config(encoder=str(encoder), **given, train_batch=355, lr=0.256, layer_decay=0.5, weight_decay=0.0)
    net = load_encoder(encoder)
    task = of_digits(options, net)
    (fitted,) = training.train_on_images(options, task, net, World())
    data = training._inputs.open_images("digits:8:test", options)
    views, labels = data.read(np.arange(355)).float() / 255, torch.from_numpy(data.rows.labels)
    twin = copy.deepcopy(net).train()
    head = training._new_linear(options, 256, 10, 0)
    F.cross_entropy(head(twin(views)[0]), labels, label_smoothing=0.1).backward()
    lr = 0.256 * 355 / 256
    before, after = dict(twin.named_parameters()), dict(fitted.encoder.named_parameters())
    for name, scale in (("conv1.weight", 0.5**5), ("layer1.0.bn1.weight", 0.5**4), ("layer4.0.conv1.weight", 0.5)):
        weight, moved = before[f"backbone.{name}"], after[f"backbone.{name}"]
        torch.testing.assert_close(weight - moved, lr * scale * weight.grad, rtol=1e-2, atol=2e-6)
    torch.testing.assert_close(head.weight - fitted.classifier.weight.T, lr * head.weight.grad, rtol=1e-3, atol=1e-6)
    assert not fitted.encoder.training


def test_the_frozen_encoder_stays_as_it_was(encoder: Path) -> None:
    options = config(encoder=str(encoder), mode="sgd", epochs=2)
    net = load_encoder(encoder).eval()
    before = copy.deepcopy(net.state_dict())
    training.train_on_images(options, of_digits(options, net), net, World())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_views_that_change_nothing_train_what_the_features_train(encoder: Path) -> None:
    options = config(encoder=str(encoder), mode="sgd", augment="none", epochs=3, train_batch=100, lr=1.0)
    net = load_encoder(encoder).eval()
    task = of_digits(options, net)
    (seen,) = training.train_on_images(options, task, net, World())
    data = training._inputs.open_images("digits:8:test", options)
    features = net.encode(data.read(task.train.rows))
    computed = training.train_on_features(options, task, features, task.subsets[0], 0)
    torch.testing.assert_close(seen.classifier.weight, computed.weight, rtol=1e-4, atol=1e-5)
