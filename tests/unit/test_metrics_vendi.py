"""The Vendi score against its definition and known cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corecli.base.errors import DataError
from corecli.metrics.vendi import vendi


@pytest.mark.parametrize(("num", "dim"), [(60, 10), (10, 60), (20, 20)])
def test_equals_the_definition(num, dim):
    x = np.random.default_rng(0).normal(size=(num, dim)) + 0.5
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(units @ units.T / num)
    shares = shares[shares > 1e-12]
    assert vendi(torch.from_numpy(x)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


def test_counts_different_images():
    one_each = torch.eye(12)
    assert vendi(one_each) == pytest.approx(12)
    assert vendi(one_each[[0, 0, 0, 5, 5, 5]]) == pytest.approx(2)
    assert vendi(one_each[:1]) == pytest.approx(1)


def test_centering_separates_features_with_a_common_direction():
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) + 50
    assert vendi(x) < 1.1
    assert vendi(x, centered=True) > 25


@pytest.mark.parametrize("features", [torch.zeros(0, 3), torch.full((4, 3), torch.nan)])
def test_empty_and_non_finite_features_are_refused(features):
    with pytest.raises(DataError, match="empty or contain NaN"):
        vendi(features)
