"""The inception score against torch-fidelity and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.inception_score import inception_score


def logits(num: int, classes: int = 30) -> Tensor:
    return torch.randn(num, classes, generator=torch.Generator().manual_seed(0)) * 4


def test_equals_torch_fidelity():
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    x = logits(1237)
    expected = metric_isc.isc_features_to_metric(x)
    found = inception_score(x)
    assert found.mean == pytest.approx(expected[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert found.std == pytest.approx(expected[metric_isc.KEY_METRIC_ISC_STD], rel=1e-9)


def test_certain_and_varied_answers_score_the_number_of_classes():
    x = 1000 * torch.eye(7).repeat(20, 1)
    found = inception_score(x, num_splits=2, shuffle_seed=None)
    assert found.mean == pytest.approx(7, rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_one_answer_for_all_scores_one():
    assert inception_score(logits(1).expand(50, -1)).mean == pytest.approx(1, rel=1e-12)


def test_two_samples_by_hand():
    p, q = 0.9, 0.2
    x = torch.tensor([[math.log(p), math.log(1 - p)], [math.log(q), math.log(1 - q)]], dtype=torch.float64)
    m = (p + q) / 2
    kl = [a * math.log(a / m) + (1 - a) * math.log((1 - a) / (1 - m)) for a in (p, q)]
    assert inception_score(x, num_splits=1).mean == pytest.approx(math.exp(sum(kl) / 2), rel=1e-12)


def test_order_matters_only_without_the_shuffle():
    x = logits(100).sort(dim=0).values
    assert inception_score(x, shuffle_seed=None).mean != pytest.approx(inception_score(x).mean, rel=1e-3)


def test_too_few_rows_and_nan_are_refused():
    with pytest.raises(DataError, match="at least one image per split: 9 for 10"):
        inception_score(logits(9))
    with pytest.raises(DataError, match="NaN"):
        inception_score(logits(10).fill_(float("nan")))
