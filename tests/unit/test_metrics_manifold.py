"""Precision, recall, density and coverage against torch-fidelity and full matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corecli.metrics import density_coverage, precision_recall
from corecli.metrics.parts.survey import Balls, survey


def rows(num: int, dim: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


def balls(samples: Tensor, reference: Tensor) -> Balls:
    found = survey(samples, reference, ("balls",)).balls
    assert found is not None
    return found


def pr(samples: Tensor, reference: Tensor) -> dict[str, float]:
    return precision_recall.compute(balls=balls(samples, reference))


def dc(samples: Tensor, reference: Tensor) -> dict[str, float]:
    return density_coverage.compute(balls=balls(samples, reference))


def test_precision_and_recall_equal_torch_fidelity():
    peer = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = rows(200, 10, 0, shift=0.5), rows(230, 10, 1)
    expected = peer.prc_features_to_metric(x, y, verbose=False)
    found = pr(x, y)
    assert found == {"precision": pytest.approx(expected["precision"]), "recall": pytest.approx(expected["recall"])}
    assert 0.2 < found["recall"] != found["precision"] < 0.98


def test_density_and_coverage_by_their_definition():
    x, y = rows(120, 6, 0, shift=0.3), rows(150, 6, 1)
    radii = torch.cdist(y.double(), y.double()).kthvalue(6).values  # oneself and five others
    inside = torch.cdist(y.double(), x.double()) < radii[:, None]
    found = dc(x, y)
    assert found["density"] == pytest.approx(float(inside.sum() / (5 * 120)))
    assert found["coverage"] == pytest.approx(float(inside.any(1).double().mean()))


def test_two_sets_of_one_distribution():
    x, y = rows(1500, 4, 2), rows(1500, 4, 3)
    found = dc(x, y)
    assert found["density"] == pytest.approx(1, abs=0.05)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_generator_that_repeats_one_image_has_precision_without_recall_and_density_without_coverage():
    real = rows(300, 8, 4)
    repeated = real[:1].repeat(300, 1) + 1e-4 * rows(300, 8, 5)
    of_balls = pr(repeated, real)
    assert of_balls == {"precision": 1.0, "recall": pytest.approx(0, abs=0.01)}
    assert dc(repeated, real)["coverage"] < 0.1


def test_an_outlier_moves_precision_but_hardly_density():
    real, far = rows(300, 8, 6), rows(300, 8, 7, shift=6)
    outlier = torch.cat([real, torch.full((1, 8), 9.0)])
    assert pr(far, real)["precision"] == 0
    assert pr(far, outlier)["precision"] > 0.5
    assert dc(far, outlier)["density"] < 0.25
