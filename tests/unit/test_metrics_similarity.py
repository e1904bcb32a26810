"""CKA, its debiased form and the orthogonal Procrustes distance of two feature spaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts import similarity as module
from corecli.metrics.parts.similarity import bootstrap, similarity


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def rotation(dim: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=7))[0]


@pytest.fixture(scope="module")
def related() -> tuple[Tensor, Tensor]:
    """Features [120, 7] and [120, 5] with common factors."""
    causes = normal(120, 4)
    return causes @ normal(4, 7, seed=1) + normal(120, 7, seed=2) + 3, causes @ normal(4, 5, seed=3) - 2


def test_rotation_shift_and_scale_have_distance_0() -> None:
    x = normal(200, 12) * torch.arange(1, 13)
    y = 0.01 * (x @ rotation(12)) + 5
    found = similarity(x, y)
    assert (found.cka, found.opd, found.cka_debiased) == pytest.approx((0, 0, 0), abs=1e-12)
    wider = torch.cat([y, torch.zeros(200, 3)], 1)
    assert (similarity(x, wider).cka, similarity(x, wider).opd) == pytest.approx((0, 0), abs=1e-12)


def test_a_general_linear_map_has_a_distance_above_0() -> None:
    x = normal(400, 12)
    found = similarity(x, x @ torch.diag(torch.arange(1.0, 13)).double())
    assert found.cka > 0.1
    assert found.opd > 0.1


def test_the_distances_are_symmetric(related: tuple[Tensor, Tensor]) -> None:
    one, other = similarity(*related), similarity(*reversed(related))
    assert vars(one) == pytest.approx(vars(other), abs=1e-12)


def test_cka_equals_that_of_whole_kernels(related: tuple[Tensor, Tensor]) -> None:
    """Centered N x N kernels in NumPy; the debiased form by the estimator of Song et al., term by term."""
    n = len(related[0])
    kernels = [(x @ x.T).numpy() for x in related]
    centring = np.eye(n) - 1 / n
    k1, k2 = (centring @ kernel @ centring for kernel in kernels)
    biased = 1 - np.sum(k1 * k2) / np.sqrt(np.sum(k1 * k1) * np.sum(k2 * k2))

    def hsic(first: np.ndarray, second: np.ndarray) -> float:
        k1, k2 = (kernel - np.diag(np.diag(kernel)) for kernel in (first, second))
        ones = np.ones(n)
        total = np.trace(k1 @ k2) + (ones @ k1 @ ones) * (ones @ k2 @ ones) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (ones @ k1 @ k2 @ ones)) / (n * (n - 3))

    debiased = 1 - hsic(*kernels) / math.sqrt(hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1]))
    found = similarity(*related)
    assert found.cka == pytest.approx(biased, abs=1e-12)
    assert found.cka_debiased == pytest.approx(debiased, abs=1e-10)


def test_opd_is_the_residual_of_the_best_rotation(related: tuple[Tensor, Tensor]) -> None:
    """The solution R of min |B - A R|^2, with zeros added to the smaller space."""
    a, b = ((x - x.mean(0)) / (x - x.mean(0)).norm() for x in related)
    b = torch.cat([b, torch.zeros(len(b), a.shape[1] - b.shape[1])], 1)
    u, _, vh = torch.linalg.svd(a.T @ b)
    left = (b - a @ (u @ vh)).square().sum()
    assert torch.allclose((u @ vh) @ (u @ vh).T, torch.eye(len(u)).double())
    assert similarity(*related).opd == pytest.approx(float(left), abs=1e-12)
    worse = (b - a @ rotation(a.shape[1])).square().sum()
    assert worse > left


def test_few_images_make_independent_spaces_look_alike() -> None:
    """CKA and OPD are biased at small N; the debiased CKA is not."""
    x, y = normal(4000, 512), normal(4000, 256, seed=1)
    few, more, many = (similarity(x[:n], y[:n]) for n in (256, 1000, 4000))
    assert (few.cka, more.cka, many.cka) == pytest.approx((0.42, 0.74, 0.92), abs=0.02)
    assert (few.opd, more.opd, many.opd) == pytest.approx((0.39, 1.09, 1.53), abs=0.02)
    assert (few.cka_debiased, more.cka_debiased, many.cka_debiased) == pytest.approx((1, 1, 1), abs=0.01)


def test_resamples_depend_on_the_seed_and_have_lower_distances(related: tuple[Tensor, Tensor]) -> None:
    x, y = normal(300, 64), normal(300, 48, seed=1)
    found = list(bootstrap(x, y, num_resamples=20, seed=3))
    assert found[:5] == list(bootstrap(x, y, num_resamples=5, seed=3))
    assert found[:5] != list(bootstrap(x, y, num_resamples=5, seed=4))
    assert len({value.cka for value in found}) == 20
    whole = similarity(x, y)
    assert max(value.cka for value in found) < whole.cka
    assert max(value.opd for value in found) < whole.opd


def test_the_block_size_does_not_matter(related: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = similarity(*related)
    monkeypatch.setattr(module, "_ROWS_PER_BLOCK", 7)
    assert vars(similarity(*related)) == pytest.approx(vars(whole), abs=1e-12)


def test_features_that_cannot_be_compared_are_refused() -> None:
    x = normal(10, 3)
    for first, second, reason in (
        (x, x[:9], "do not belong to the same images"),
        (x[:3], x[:3], "3 images are too few"),
        (x, torch.ones(10, 2), "constant"),
        (x, x * torch.nan, "NaN"),
    ):
        with pytest.raises(DataError, match=reason):
            similarity(first, second)


def test_equally_distant_images_have_no_debiased_form() -> None:
    corners, other = torch.eye(6), normal(6, 4)
    for pair in ((corners, other), (other, corners)):
        assert math.isnan(similarity(*pair).cka_debiased)
    assert not math.isnan(similarity(other, other).cka_debiased)
