"""What every file in metrics/ promises, so that a new metric is tested the moment its file exists.

A metric is `compute(*, ...) -> {name: number}`, whose parameter names say what it needs, and `DIRECTION`, which says
for every name whether lower or higher is better.
"""

from __future__ import annotations

import ast
import inspect
import math
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from corecli.base import registry

METRICS = registry.choices("metrics")
MODULES = Path(inspect.getfile(registry)).parent.parent / "metrics"
PAIRED = (
    {"train_features", "train_labels"},
    {"test_features", "test_labels"},
    {"features", "labels"},
    {"first", "second"},
    {"samples", "sample_labels"},
    {"reference", "reference_labels"},
    {"scores", "positives"},
    {"masks", "predicted_masks"},
)

BY_POSITION = {"linear_probe": 0.02, "logistic": 0.02, "inception_score": 0.02, "fd_infinity": 0.05}


def world(quality: str) -> dict[str, Tensor]:
    """Everything a metric may ask for: as it should be, or bad: collapsed and unaligned, and samples that are copies.

    "displaced" has bad samples of the other kind, near nothing real.
    """
    good = quality == "good"
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    reference, mean = normal(300, 8), normal(1, 8)
    bad_samples = reference[:4].repeat(70, 1) + 1e-3 * normal(280, 8) if quality == "bad" else normal(280, 8) + 2
    labels = torch.arange(240) % 6
    centers = (4.0 if good else 0.2) * normal(6, 8)
    views = normal(200, 8)
    positives = (torch.arange(200)[:, None] % torch.tensor([3, 5, 11]) == 0).int()
    masks = torch.randint(0, 4, (9, 8, 8), generator=generator)
    return {
        "reference": reference,
        "reference_labels": torch.arange(300) % 4,
        "sample_labels": torch.arange(280) % 4,
        "samples": normal(280, 8) if good else bad_samples,
        "logits": normal(250, 20) * (8.0 if good else 0.1),
        "features": normal(200, 8) if good else normal(200, 1).abs() @ normal(1, 8) + 1e-3 * normal(200, 8),
        "labels": torch.arange(200) % 5,
        "views": views + 0.1 * normal(2, 200, 8) if good else mean + 0.5 * normal(2, 200, 8),
        "first": views,
        "second": (views if good else normal(200, 8)) @ normal(8, 6) + 0.1 * normal(200, 6),
        "train_features": centers[labels] + normal(240, 8),
        "train_labels": labels,
        "test_features": centers[labels] + normal(240, 8),
        "test_labels": labels,
        "positives": positives,
        "masks": masks,
        "predicted_masks": torch.where(torch.rand(9, 8, 8, generator=generator) < (0.9 if good else 0.2), masks, 1),
        "scores": normal(200, 3) + (2.0 if good else 0.2) * positives,
    }


def needs(module: ModuleType) -> list[str]:
    return list(inspect.signature(module.compute).parameters)


def measure(module: ModuleType, inputs: dict[str, Tensor]) -> dict[str, float]:
    return module.compute(**{name: inputs[name] for name in needs(module)})


@cache
def as_it_should_be(module: ModuleType) -> dict[str, float]:
    return measure(module, world("good"))


def permuted(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows in another order; features keep their labels, views and paired features their partners."""
    orders: dict[str, Tensor] = {}
    found = {}
    for name, value in inputs.items():
        axis = 1 if name == "views" else 0
        group = next((str(sorted(pair)) for pair in PAIRED if name in pair), name)
        order = orders.setdefault(group, torch.randperm(value.shape[axis], generator=torch.Generator().manual_seed(1)))
        found[name] = value.index_select(axis, order)
    return found


@pytest.fixture(params=METRICS)
def metric(request) -> ModuleType:
    return registry.load("metrics", request.param)


def test_the_registry_holds_the_metrics_the_verbs_offer():
    expected = {
        "frechet",
        "inception-score",
        "kid",
        "precision-recall",
        "density-coverage",
        "knn",
        "linear-probe",
        "copies",
    }
    assert expected <= set(METRICS)


def test_needs_are_known_and_keyword_only(metric):
    parameters = inspect.signature(metric.compute).parameters.values()
    assert {p.name for p in parameters} <= set(world("good"))
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)


def test_values_are_finite_numbers_under_the_declared_names(metric):
    found = as_it_should_be(metric)
    assert set(found) == set(metric.DIRECTION)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_worse_inputs_give_worse_values(metric):
    """In one way of being bad: precision does not see copies, nor a copy check what is near nothing."""
    good, bads = as_it_should_be(metric), [measure(metric, world(quality)) for quality in ("bad", "displaced")]
    for name, direction in metric.DIRECTION.items():
        values = [bad[name] for bad in bads]
        assert good[name] < max(values) if direction == "lower" else good[name] > min(values), name


def test_the_order_of_rows_does_not_matter(metric):
    """Up to the choice of splits, hold-outs and subsets, which are drawn by position."""
    tolerance = BY_POSITION.get(metric.__name__.rpartition(".")[2], 1e-9)
    found, other = as_it_should_be(metric), measure(metric, permuted(world("good")))
    for name, value in found.items():
        assert other[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


def test_metrics_read_no_files_and_build_no_models():
    allowed = {"corecli.base.errors", "corecli.base.rng"}
    for path in MODULES.glob("*.py"):
        imported = [
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        ours = {name for name in imported if name.startswith("corecli.") and not name.startswith("corecli.metrics")}
        assert ours <= allowed, path.name
