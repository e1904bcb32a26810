"""The 11-point average precision against the development kit's loop, and what it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from corecli.metrics.parts.average_precision import average_precision_11, mean_average_precision


def devkit(scores: np.ndarray, positives: np.ndarray) -> float:
    """VOCevalcls.m, line by line: sort, count, and take the highest precision at eleven recalls."""
    order = np.argsort(-scores, kind="stable")
    tp, fp, curve = 0, 0, []
    num = int((positives == 1).sum())
    for i in order:
        tp += positives[i] == 1
        fp += positives[i] == 0
        curve.append((tp / num, tp / (tp + fp) if tp + fp else 0.0))
    ap = 0.0
    for t in range(11):
        reached = [precision for recall, precision in curve if recall >= t / 10 - 1e-12]
        ap += max(reached, default=0.0) / 11
    return ap


def with_appended_point(scores: np.ndarray, positives: np.ndarray) -> float:
    metrics = pytest.importorskip("sklearn.metrics")
    known = positives >= 0
    precision, recall, _ = metrics.precision_recall_curve(positives[known], scores[known])
    return float(np.mean([precision[recall >= t / 10 - 1e-12].max() for t in range(11)]))


@pytest.mark.parametrize("strength", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_development_kit(strength: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positives = rng.choice([1, 0, 0, 0, 0, 0, 0, 0, 0, -1], 300)
    scores = rng.normal(size=300) + strength * (positives == 1)
    found = average_precision_11(torch.from_numpy(scores), torch.from_numpy(positives))
    assert found == pytest.approx(devkit(scores, positives), abs=1e-12)


def test_a_recall_is_reached_exactly() -> None:
    """3 of 10 is a recall of 0.3, where 0.1 + 0.1 + 0.1 is more than that."""
    scores = torch.arange(40.0, 0, -1)
    positives = torch.zeros(40, dtype=torch.int64)
    positives[[0, 1, 2, 10, 11, 12, 20, 25, 30, 35]] = 1
    found = average_precision_11(scores, positives)
    assert found == pytest.approx(devkit(scores.numpy(), positives.numpy()), abs=1e-12)
    by_hand = [1, 1, 1, 1, 6 / 13, 6 / 13, 6 / 13, 7 / 21, 8 / 26, 9 / 31, 10 / 36]
    assert found == pytest.approx(sum(by_hand) / 11)


def test_there_is_no_appended_point() -> None:
    """With weak scores the point (recall 0, precision 1) is worth several percent."""
    rng = np.random.default_rng(1)
    positives = (rng.random(500) < 0.08).astype(int)
    scores = rng.normal(size=500)
    scores[positives == 0][:5] += 5
    found = average_precision_11(torch.from_numpy(scores), torch.from_numpy(positives))
    assert found == pytest.approx(devkit(scores, positives), abs=1e-12)
    assert with_appended_point(scores, positives) > found + 0.03


def test_the_mean_is_over_the_classes_with_positives() -> None:
    scores, positives = torch.rand(50, 3), (torch.rand(50, 3) < 0.3).int()
    positives[:, 1] = 0
    each = [average_precision_11(scores[:, c], positives[:, c]) for c in (0, 2)]
    assert mean_average_precision(scores, positives) == pytest.approx(sum(each) / 2)
    assert math.isnan(average_precision_11(scores[:, 1], positives[:, 1]))
