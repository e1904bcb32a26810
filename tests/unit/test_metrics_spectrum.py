"""Effective rank, alignment and uniformity against plain float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corecli.base.errors import DataError
from corecli.metrics.parts import alignment_uniformity
from corecli.metrics.parts.alignment_uniformity import alignment, uniformity
from corecli.metrics.parts.effective_rank import effective_rank


@pytest.mark.parametrize("shape", [(200, 16), (16, 200)])
def test_effective_rank_equals_the_entropy_of_singular_values(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.logspace(0, -3, shape[1])
    values = np.linalg.svd(x, compute_uv=False)
    share = values / values.sum() + 1e-7
    assert effective_rank(torch.from_numpy(x)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_effective_rank_of_orthogonal_and_collapsed_features():
    assert effective_rank(torch.eye(32)) == pytest.approx(32, rel=1e-4)
    assert effective_rank(torch.ones(50, 32)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("bad", [0.0, float("nan")])
def test_effective_rank_refuses_zero_and_nan(bad):
    with pytest.raises(DataError):
        effective_rank(torch.full((4, 3), bad))


def unit(num: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(num, 5))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_alignment_equals_numpy_and_ignores_length():
    x, y = unit(40, 1), unit(40, 2)
    expected = (np.linalg.norm(x - y, axis=1) ** 2).mean()
    assert alignment(torch.from_numpy(3 * x), torch.from_numpy(y / 7)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tile", [7, 2048])
def test_uniformity_equals_numpy_over_pairs(tile, monkeypatch):
    monkeypatch.setattr(alignment_uniformity, "_TILE", tile)
    x = unit(40, 3)
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(40, 1)]
    expected = np.log(np.exp(-2 * squared).mean())
    assert uniformity(torch.from_numpy(x)) == pytest.approx(expected, rel=1e-9)


def test_uniformity_of_equal_rows_is_0_and_one_row_is_refused():
    assert uniformity(torch.ones(10, 3)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(DataError):
        uniformity(torch.ones(1, 3))
