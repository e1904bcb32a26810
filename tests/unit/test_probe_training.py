"""Training a classifier on views, and the whole network: rates, depths, and equality with plain loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corecli.commands.probe.command import _open_reader
from corecli.commands.probe.context import Context
from corecli.commands.probe.modes import finetune, sgd
from corecli.commands.probe.options import Config, mode_options
from corecli.commands.probe.presets import PRESETS
from corecli.commands.probe.problem import read_problem
from corecli.commands.probe.sets import tasks
from corecli.commands.probe.training import Training, new_linear, order_of
from corecli.data.imageset import open_set
from corecli.engine.dist import World
from corecli.metrics.parts.fitting import Split
from corecli.nets.encoder import build_encoder, load_encoder, save_encoder

NUM, DIM, CLASSES = 96, 12, 3


def config(**given: Any) -> Config:
    return Config(**{"train": ("digits:8:test",), "test": ("digits:8:test",), "quiet": True, **given})


def fitted(context: Any, options: Config, seed: int) -> Any:
    mode = {"sgd": sgd, "finetune": finetune}[options.mode]
    rows = context.problem.subsets[0]
    split = Split(fitted=rows, held=rows[:0], final=rows)
    return mode.fit(context, split, options=mode.Options(**mode_options(options)), seed=seed)


def of_features(computed: torch.Tensor) -> Any:
    """A context whose rows have the classes 0, 1, 2, 0, ... and these features."""
    rows = torch.arange(len(computed))
    train = SimpleNamespace(spec="features")
    problem = SimpleNamespace(numbers=rows % CLASSES, space=[None] * CLASSES, subsets=(rows,), train=train)
    reader = SimpleNamespace(world=World(), shown=False)
    return Context(problem=problem, reader=reader, computed=computed)  # type: ignore[arg-type]


def of_digits(options: Config) -> Context:
    reader = _open_reader(options, World())
    return Context(
        problem=read_problem(tasks(options.train, (), options.test)[0], reader, seeds=range(1)), reader=reader
    )


def training_of(options: Config, num: int, world: World) -> Training:
    return Training.of(sgd.Options(**mode_options(options)), num, world)


def features() -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(NUM, DIM, generator=g) * torch.linspace(0.1, 5, DIM) + 1


def plain_loop(options: Config, steps: int, size: int, lr: Any, step_of: Any, norm: bool = False) -> nn.Module:
    """The same batches and first weights, everything else by torch's own classes."""
    order = order_of(torch.arange(NUM), training_of(options, NUM, World()), 5)
    linear = new_linear(DIM, CLASSES, 5, std=0.01)
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


def sgd_step(linear: nn.Linear, lr: float, state: dict[Any, Any]) -> None:
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
    "sgd": ({"lr": 0.8}, sgd_step, cosine(0.8 * 32 / 256, 30), False),
    "steps": ({"lr": 0.8, "schedule": "steps"}, sgd_step, lambda s: 0.1 * 0.1 ** ((s >= 18) + (s >= 24)), False),
    "lars": ({"lr": 80.0, "optimizer": "lars"}, lars(False), cosine(10, 30), False),
    "lars on the bias": ({"lr": 80.0, "optimizer": "lars", "lars_bias": "adapt"}, lars(True), cosine(10, 30), False),
    "batchnorm": ({"lr": 0.8, "head": "batchnorm"}, sgd_step, cosine(0.1, 30), True),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_classifier_on_features_equals_a_plain_loop(name: str) -> None:
    given, step_of, lr, norm = PROTOCOLS[name]
    options = config(mode="sgd", augment="none", train_batch=32, epochs=10, **given)
    found = fitted(of_features(features()), options, 5).classifier
    expected = plain_loop(options, 30, 32, lr, step_of, norm)
    torch.testing.assert_close(found.logits(features()), expected(features()), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.weight.T, new_linear(DIM, CLASSES, 5, std=0.01).weight)


def test_a_rate_is_for_256_images_and_a_batch_no_larger_than_the_set() -> None:
    options = config(mode="sgd", lr=0.1, train_batch=16384, epochs=90, warmup_epochs=10)
    found = training_of(options, 5000, World())
    assert (found.batch_size, found.total_steps, found.warmup_steps) == (5000, 90, 10)
    assert found.rate(10) == pytest.approx(0.1 * 5000 / 256)
    assert found.rate(0) < found.rate(9) < found.rate(10) > found.rate(11)
    assert training_of(config(mode="sgd"), 1001, World(size=4)).batch_size == 256
    assert training_of(config(mode="sgd"), 11, World(size=4)).batch_size == 8


def test_presets_are_the_published_protocols() -> None:
    found = {
        name: (p["optimizer"], p["lr"], p["train_batch"], p["epochs"], p["schedule"])
        for name, p in PRESETS.items()
        if p["mode"] == "sgd"
    }
    assert found == {
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


def test_finetuning_steps_each_layer_by_its_rate(encoder: Path) -> None:
    """One step of SGD with weights so large that only the rates differ: weight - gradient * lr * decay^(5 - depth)."""
    given = {"mode": "finetune", "epochs": 1, "warmup_epochs": 0, "optimizer": "sgd", "augment": "none"}
    options = config(encoder=str(encoder), **given, train_batch=355, lr=0.256, layer_decay=0.5, weight_decay=0.0)
    net = load_encoder(encoder)
    found = fitted(of_digits(options), options, 0)
    data = open_set("digits:8:test")
    views, labels = data.read(np.arange(355)).float() / 255, torch.from_numpy(data.rows.labels)
    twin = copy.deepcopy(net).train()
    head = new_linear(256, 10, 0, std=2e-5)
    F.cross_entropy(head(twin(views)[0]), labels, label_smoothing=0.1).backward()
    lr = 0.256 * 355 / 256
    before, after = dict(twin.named_parameters()), dict(found.encoder.named_parameters())
    for name, scale in (("conv1.weight", 0.5**5), ("layer1.0.bn1.weight", 0.5**4), ("layer4.0.conv1.weight", 0.5)):
        weight, moved = before[f"backbone.{name}"], after[f"backbone.{name}"]
        torch.testing.assert_close(weight - moved, lr * scale * weight.grad, rtol=1e-2, atol=2e-6)
    torch.testing.assert_close(head.weight - found.classifier.weight.T, lr * head.weight.grad, rtol=1e-3, atol=1e-6)
    assert not found.encoder.training


def test_the_frozen_encoder_stays_as_it_was(encoder: Path) -> None:
    options = config(encoder=str(encoder), mode="sgd", epochs=2)
    context = of_digits(options)
    net = context.reader.net
    before = copy.deepcopy(net.state_dict())
    fitted(context, options, 0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_views_that_change_nothing_train_what_the_features_train(encoder: Path) -> None:
    options = config(encoder=str(encoder), mode="sgd", augment="none", epochs=3, train_batch=100, lr=1.0)
    context = of_digits(options)
    seen = fitted(context, options, 0).classifier
    features = context.reader.features(context.problem.train)
    computed = fitted(replace(context, computed=features), options, 0).classifier
    torch.testing.assert_close(seen.weight, computed.weight, rtol=1e-4, atol=1e-5)
