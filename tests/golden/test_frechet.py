"""The Frechet distance against closed forms, an independent float64 computation pytorch-fid and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corecli.metrics.parts.frechet import distance, frechet_distance, gaussian_of

Statistics = tuple[np.ndarray, np.ndarray]


def features(num: int, dim: int, seed: int) -> np.ndarray:
    """Correlated, non-negative features with a mean above 0, like pooled activations."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(0, -2, dim)
    mixing = rng.normal(size=(dim, dim)) * scale / dim**0.5
    return np.maximum(rng.normal(size=(num, dim)) @ mixing + 0.5 * scale * rng.normal(size=dim), 0)


def statistics(x: np.ndarray) -> Statistics:
    return x.mean(0), np.cov(x, rowvar=False)


@pytest.fixture(params=[(400, 500, 32), (700, 3000, 128)], ids=["D32", "D128"])
def pair(request) -> tuple[np.ndarray, np.ndarray]:
    n, m, dim = request.param
    return features(n, dim, 1), features(m, dim, 2)


def by_eigenvalues(a: Statistics, b: Statistics) -> float:
    roots = np.sqrt(np.linalg.eigvals(a[1] @ b[1]).astype(complex)).real
    return float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * roots.sum())


def test_full_rank_equals_the_eigenvalues_of_the_product(pair):
    a, b = statistics(pair[0]), statistics(pair[1])
    expected = by_eigenvalues(a, b)
    assert frechet_distance(*a, *b) == pytest.approx(expected, rel=1e-9)
    assert distance(*(gaussian_of(torch.from_numpy(x)) for x in pair)) == pytest.approx(expected, rel=1e-9)


def test_full_rank_equals_pytorch_fid(pair):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = statistics(pair[0]), statistics(pair[1])
    assert frechet_distance(*a, *b) == pytest.approx(fid_score.calculate_frechet_distance(*a, *b), rel=1e-6)


def test_full_rank_equals_torch_fidelity(pair):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = (dict(zip(("mu", "sigma"), statistics(x), strict=True)) for x in pair)
    expected = metric_fid.fid_statistics_to_metric(a, b, False)[metric_fid.KEY_METRIC_FID]
    assert frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"]) == pytest.approx(expected, rel=1e-6)


def test_independent_coordinates_have_a_closed_form():
    rng = np.random.default_rng(0)
    mu1, mu2, sd1, sd2 = rng.normal(size=9), rng.normal(size=9), rng.random(9) + 0.1, rng.random(9) + 0.1
    expected = ((mu1 - mu2) ** 2).sum() + ((sd1 - sd2) ** 2).sum()
    assert frechet_distance(mu1, np.diag(sd1**2), mu2, np.diag(sd2**2)) == pytest.approx(expected, rel=1e-12)


def test_fewer_rows_than_dimensions_is_exact():
    """If features span r < D common directions, the distance is that of the r coordinates with regular covariances."""
    coordinates = [features(n, 20, seed) for n, seed in ((60, 3), (90, 4))]
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(200, 20)))[0].T
    a, b = (statistics(x) for x in coordinates)
    wide = [x @ basis for x in coordinates]
    expected = by_eigenvalues(a, b)
    data = distance(*(gaussian_of(torch.from_numpy(x)) for x in wide))
    assert data == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(*statistics(wide[0]), *statistics(wide[1])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num", [3, 40, 64, 65])
def test_a_set_has_distance_0_from_itself(num):
    x = torch.from_numpy(features(num, 64, 6))
    assert distance(gaussian_of(x), gaussian_of(x)) <= 1e-12 * float(x.square().sum())
