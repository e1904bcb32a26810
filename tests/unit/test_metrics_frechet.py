"""Streaming moments, their merge, and the jackknife."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.folds import folds_of, jackknife
from corecli.metrics.parts.frechet import Gaussian, Moments, compare, distance, gaussian_of


def features(num: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator).relu() * torch.linspace(0.1, 2, dim) + shift


def moments(x: Tensor, *, batch: int, rows: Tensor | None = None) -> Moments:
    found = Moments(x.shape[1])
    for start in range(0, len(x), batch):
        found.update(x[start : start + batch], None if rows is None else rows[start : start + batch])
    return found


def assert_same(a: Gaussian, b: Gaussian) -> None:
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.matrix(), b.matrix(), rtol=1e-10, atol=1e-12)
    assert a.num == b.num


@pytest.mark.parametrize(("num", "batch"), [(25, 7), (300, 64), (12_000, 1000)])
def test_streaming_equals_numpy(num, batch):
    x = features(num, 40, 0)
    found = moments(x, batch=batch).gaussian()
    np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.matrix(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_caller_may_reuse_its_buffer():
    buffer, found = torch.empty(8, 3), Moments(3)
    for value in (1.0, 3.0):
        found.update(buffer.fill_(value))
    assert found.gaussian().mean.tolist() == [2, 2, 2]


def test_merge_and_summed_tensors_equal_one_process():
    x, rows = features(400, 12, 1), torch.arange(400)
    whole = moments(x, batch=50, rows=rows)
    parts = [moments(x[rank::2], batch=50, rows=rows[rank::2]) for rank in range(2)]
    summed = Moments(12)
    for mine, a, b in zip(summed.tensors(), *(p.tensors() for p in parts), strict=True):
        mine.copy_(a + b)
    parts[0].merge(parts[1])
    for found in (parts[0], summed):
        for fold in (None, 0, 7):
            assert_same(found.gaussian(without_fold=fold), whole.gaussian(without_fold=fold))


def test_folds_are_balanced_cover_all_rows_and_ignore_batches():
    x = features(1003, 4, 2)
    counts = moments(x, batch=1003).tensors()[0]
    assert counts.sum() == 1003
    assert counts.max() - counts.min() <= 1
    for mine, other in zip(moments(x, batch=1003).tensors(), moments(x, batch=10).tensors(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_folds_do_not_align_with_regular_labels():
    labels = torch.arange(5000) % 10
    counts, totals, _ = moments(torch.eye(10)[labels], batch=500).tensors()
    assert totals.max() < 0.25 * counts.max()  # one class a fold would put all of a fold into one column


def test_rows_with_the_same_number_share_a_fold():
    found = moments(features(60, 3, 0), batch=10, rows=torch.arange(60) // 20)
    assert sorted(found.tensors()[0].tolist())[-3:] == [20, 20, 20]


@pytest.mark.parametrize(("num", "dim"), [(40, 100), (400, 20)], ids=["rows", "products"])
def test_leaving_a_fold_out_equals_dropping_its_rows(num, dim):
    x = features(num, dim, 3)
    found = moments(x, batch=num)
    folds = folds_of(torch.arange(num))
    assert_same(found.gaussian(without_fold=4), gaussian_of(x[folds != 4]))


def test_singular_covariance_from_merged_sums_equals_the_exact_form():
    x, y = features(60, 150, 4), features(80, 150, 5)
    exact = distance(gaussian_of(x), gaussian_of(y))
    a, b = moments(x, batch=20), moments(y, batch=20)
    a.tensors(), b.tensors()  # from here on only sums are left
    assert distance(a.gaussian(), b.gaussian()) == pytest.approx(exact, rel=1e-9)
    assert distance(gaussian_of(x), b.gaussian()) == pytest.approx(exact, rel=1e-9)


def test_jackknife_of_a_biased_variance_is_the_unbiased_one():
    x = np.random.default_rng(0).normal(size=10)
    corrected, error, interval = jackknife(float(x.var()), [float(np.delete(x, i).var()) for i in range(10)])
    assert corrected == pytest.approx(x.var(ddof=1), rel=1e-12)
    assert (interval[1] - interval[0]) / 2 == pytest.approx(2.2621571628 * error, rel=1e-9)  # t table, 9 degrees


def test_jackknife_error_of_a_mean_is_the_textbook_one():
    x = np.random.default_rng(1).normal(size=10)
    corrected, error, _ = jackknife(float(x.mean()), [float(np.delete(x, i).mean()) for i in range(10)])
    assert corrected == pytest.approx(x.mean(), rel=1e-9)
    assert error == pytest.approx(x.std(ddof=1) / 10**0.5, rel=1e-12)


def test_the_correction_removes_the_sample_size_bias():
    results = [
        compare(moments(features(500, 30, s), batch=100), moments(features(500, 30, s + 100), batch=100))
        for s in range(8)
    ]
    values, corrected = ([getattr(r, name) for r in results] for name in ("value", "corrected"))
    assert min(values) > 0.1  # equal distributions, yet never near 0
    assert abs(np.mean(corrected)) < 0.1 * np.mean(values)
    assert sum(r.interval[0] <= 0 <= r.interval[1] for r in results) >= 6


def test_a_gaussian_reference_is_taken_as_exact():
    x, y = moments(features(300, 10, 7), batch=100), moments(features(300, 10, 8), batch=100)
    both, fixed = compare(x, y), compare(x, y.gaussian())
    assert both.value == pytest.approx(fixed.value, rel=1e-12)
    assert fixed.corrected > both.corrected  # only one side's bias is taken off
    assert (fixed.num_samples, fixed.num_reference, fixed.dim) == (300, 300, 10)


def test_too_few_rows_give_a_warning_and_no_error_bar():
    found = compare(moments(features(8, 20, 0), batch=8), moments(features(300, 20, 1), batch=50))
    assert found.corrected is found.standard_error is found.interval is None
    assert found.warnings == (
        "8 samples for 20 dimensions: the covariance is singular and the distance biased; use at least 21",
    )


def test_error_bar_can_be_left_out():
    x = moments(features(100, 5, 0), batch=50)
    assert compare(x, x, error_bar=False).interval is None


@pytest.mark.parametrize("num", [0, 1])
def test_one_image_has_no_covariance(num):
    with pytest.raises(DataError, match="no covariance"):
        moments(features(num, 4, 0), batch=1).gaussian()
    with pytest.raises(DataError, match="no covariance"):
        gaussian_of(features(num, 4, 0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("num", [5, 50], ids=["rows", "sums"])
def test_non_finite_features_are_refused(bad, num):
    x = features(num, 8, 0)
    x[3, 2] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        moments(x, batch=10).gaussian()


def test_other_dimensions_are_refused():
    with pytest.raises(DataError, match="8 dimensions instead of 4"):
        Moments(4).update(features(5, 8, 0))
    with pytest.raises(DataError, match="8 and 4 dimensions"):
        distance(gaussian_of(features(5, 8, 0)), gaussian_of(features(5, 4, 0)))
