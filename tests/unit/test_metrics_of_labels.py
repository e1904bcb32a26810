"""What the figures of labels and masks in metrics/parts promise: names, direction, and no dependence on the order."""

from __future__ import annotations

import inspect
import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from corecli.metrics.parts import average_precision, knn, linear_probe, logistic, segmentation

MODULES = (average_precision, knn, linear_probe, logistic, segmentation)
PAIRED = {"train_labels": "train_features", "test_labels": "test_features", "positives": "scores"}
PAIRED |= {"predicted_masks": "masks"}
BY_POSITION = {linear_probe: 0.02, logistic: 0.02}  # hold-outs are drawn by position


def inputs(quality: str) -> dict[str, Tensor]:
    """Everything that the figures take: as it should be, or bad."""
    good, generator = quality == "good", torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.arange(240) % 6
    centers = (4.0 if good else 0.2) * normal(6, 8)
    positives = (torch.arange(200)[:, None] % torch.tensor([3, 5, 11]) == 0).int()
    masks = torch.randint(0, 4, (9, 8, 8), generator=generator)
    return {
        "train_features": centers[labels] + normal(240, 8),
        "train_labels": labels,
        "test_features": centers[labels] + normal(240, 8),
        "test_labels": labels,
        "positives": positives,
        "scores": normal(200, 3) + (2.0 if good else 0.2) * positives,
        "masks": masks,
        "predicted_masks": torch.where(torch.rand(9, 8, 8, generator=generator) < (0.9 if good else 0.2), masks, 1),
    }


def measure(module: ModuleType, given: dict[str, Tensor]) -> dict[str, float]:
    return module.compute(**{name: given[name] for name in inspect.signature(module.compute).parameters})


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_figures_are_finite_directed_and_independent_of_the_order(module: ModuleType) -> None:
    good, bad = (measure(module, inputs(quality)) for quality in ("good", "bad"))
    assert set(good) == set(module.DIRECTION)
    assert all(isinstance(value, float) and math.isfinite(value) for value in good.values())
    assert all((good[n] < bad[n]) == (direction == "lower") for n, direction in module.DIRECTION.items())
    orders, shuffled = {}, {}
    for name, value in inputs("good").items():
        group = PAIRED.get(name, name)
        orders.setdefault(group, torch.randperm(len(value), generator=torch.Generator().manual_seed(len(orders))))
        shuffled[name] = value[orders[group]]
    tolerance = BY_POSITION.get(module, 1e-9)
    assert measure(module, shuffled) == pytest.approx(good, rel=tolerance, abs=tolerance)
