"""The kernel distance and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics import kid_subsets as module
from corecli.metrics.kid import Kid, kid
from corecli.metrics.kid_subsets import kid_of_subsets
from corecli.metrics.parts.folds import folds_of
from corecli.metrics.parts.survey import survey


def rows(num: int, dim: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return (torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift).relu()


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    def mean(a: np.ndarray, b: np.ndarray) -> float:
        kernel = (a @ b.T / a.shape[1] + 1) ** 3
        return (kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)) if a is b else kernel.mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def measured(x: Tensor, y: Tensor) -> Kid:
    sums = survey(x, y, ("kernel",)).kernel
    assert sums is not None
    return kid(sums)


def test_equals_the_formula_in_float64():
    x, y = rows(150, 300, 0, shift=1), rows(130, 300, 1, shift=1.05)
    expected = mmd2(x.double().numpy(), y.double().numpy())
    assert measured(x, y).value == pytest.approx(expected, rel=1e-5)


def test_the_interval_is_the_jackknife_interval():
    x, y = rows(60, 30, 0), rows(70, 30, 1, shift=0.3)
    found = measured(x, y)
    folds = [folds_of(torch.arange(len(z))).numpy() for z in (x, y)]
    a, b = (z.double().numpy() for z in (x, y))
    left_out = np.array([mmd2(a[folds[0] != fold], b[folds[1] != fold]) for fold in range(10)])
    assert found.standard_error == pytest.approx(np.sqrt(0.9 * ((left_out - left_out.mean()) ** 2).sum()), rel=1e-4)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]


def test_the_interval_covers_the_truth_in_95_percent():
    """For one distribution, where the distance is 0, and for two, where many images give the true distance."""
    hits = 0
    truth = {
        shift: measured(rows(4000, 8, 1), rows(4000, 8, 2, shift=shift)).value if shift else 0 for shift in (0, 0.5)
    }
    for trial in range(40):
        for shift in (0.0, 0.5):
            interval = measured(rows(200, 8, 10 + trial), rows(200, 8, 100 + trial, shift=shift)).interval
            assert interval is not None
            hits += interval[0] <= truth[shift] <= interval[1]
    assert 68 <= hits <= 80


def test_few_images_have_a_value_without_interval():
    found = measured(rows(5, 4, 0), rows(9, 4, 1))
    assert found.value == pytest.approx(mmd2(rows(5, 4, 0).double().numpy(), rows(9, 4, 1).double().numpy()), rel=1e-5)
    assert (found.standard_error, found.interval) == (None, None)
    with pytest.raises(DataError, match="1 samples and 9 reference images are too few"):
        measured(rows(1, 4, 0), rows(9, 4, 1))


@pytest.mark.parametrize("whole", [4096, 50], ids=["from-all-rows", "one-by-one"])
def test_subsets_equal_torch_fidelity(whole, monkeypatch):
    monkeypatch.setattr(module, "_MOST_WHOLE_ROWS", whole)
    peer = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = rows(90, 40, 0), rows(80, 40, 1, shift=0.1)
    options = {"kid_subsets": 7, "kid_subset_size": 30, "rng_seed": 2020, "verbose": False}
    expected = peer.kid_features_to_metric(x.double(), y.double(), **options)
    mean, std = kid_of_subsets(x, y, num_subsets=7, subset_size=30)
    assert mean == pytest.approx(expected[peer.KEY_METRIC_KID_MEAN], rel=1e-4)
    assert std == pytest.approx(expected[peer.KEY_METRIC_KID_STD], rel=1e-4)
    assert kid_of_subsets(x[:80], y, num_subsets=2)[1] < 1e-12  # the whole of the smaller set, each time
    with pytest.raises(DataError, match="1 image"):
        kid_of_subsets(x[:1], y)
