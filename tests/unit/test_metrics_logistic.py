"""Logistic regression against scikit-learn's, and the choice of its C."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.metrics.parts import logistic as module
from corecli.metrics.parts.average_precision import mean_average_precision
from corecli.metrics.parts.fitting import Split, holdout
from corecli.metrics.parts.logistic import LogisticOptions, fit_logistic

FEW = LogisticOptions(costs=(1e-3, 0.1, 10.0))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(bunch.data)))
    return torch.tensor(bunch.data).float()[order], torch.tensor(bunch.target)[order]


def test_the_costs_are_the_45_published_ones():
    assert LogisticOptions().costs == pytest.approx(sorted(1 / np.logspace(-6, 5, 45)))


def test_the_accuracy_at_the_chosen_c_is_scikit_learns(digits):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = digits
    classifier, cost = fit_logistic(x[:1000], y[:1000], holdout(y[:1000], 0.1, 0))
    z = ((x - x[:1000].mean(0)) / x[:1000].std(0, correction=0)).nan_to_num(0, 0, 0).double().numpy()
    peer = linear_model.LogisticRegression(C=cost, max_iter=10_000, tol=1e-8).fit(z[:1000], y[:1000])
    found = classifier.logits(x[1000:]).argmax(1) == y[1000:]
    assert float(found.double().mean()) == pytest.approx(peer.score(z[1000:], y[1000:]), abs=0.002)
    coefficients = torch.from_numpy(peer.coef_.T).float()
    centered = (w - w.mean(1, keepdim=True) for w in (classifier.weight, coefficients))  # a softmax knows no more
    torch.testing.assert_close(*centered, rtol=0, atol=1e-3)


def test_c_is_the_best_of_separate_fits_on_the_rows_held_out(digits):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = digits[0][:400], digits[1][:400]
    split = holdout(y, 0.3, 1)
    _, cost = fit_logistic(x, y, split, FEW)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).nan_to_num(0, 0, 0).double().numpy()
    peers = [linear_model.LogisticRegression(C=c, max_iter=10_000, tol=1e-8) for c in FEW.costs]
    scores = [peer.fit(z[split.fitted], y[split.fitted]).score(z[split.held], y[split.held]) for peer in peers]
    assert scores.count(max(scores)) == 1
    assert cost == FEW.costs[int(np.argmax(scores))]


def test_large_tables_are_fitted_in_float32_with_the_same_accuracy(digits, monkeypatch):
    x, y = digits
    split = holdout(y[:1000], 0.1, 0)
    double, cost = fit_logistic(x[:1000], y[:1000], split, FEW)
    monkeypatch.setattr(module, "_MOST_DOUBLES", 0)
    monkeypatch.setattr(module, "_ROWS_PER_BLOCK", 300)
    single, same = fit_logistic(x[:1000], y[:1000], split, FEW)
    assert cost == same
    torch.testing.assert_close(single.weight, double.weight, rtol=0, atol=1e-2)
    hits = [float((one.logits(x[1000:]).argmax(1) == y[1000:]).double().mean()) for one in (single, double)]
    assert hits[0] == pytest.approx(hits[1], abs=0.002)


def test_several_classes_a_row_are_binary_fits_with_one_c_without_the_rows_passed_over(digits):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = digits[0][:500], digits[1][:500]
    targets = torch.stack([y < 3, y % 2 == 0], 1).int()
    targets[::7, 1] = -1
    rows = torch.arange(500)
    options = dataclasses.replace(FEW, costs=(0.1,))
    classifier, _ = fit_logistic(x, targets, Split(fitted=rows, held=rows, final=rows), options)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).nan_to_num(0, 0, 0).double().numpy()
    for column in range(2):
        known = (targets[:, column] >= 0).numpy()
        peer = linear_model.LogisticRegression(C=0.1, max_iter=10_000, tol=1e-8)
        peer.fit(z[known], targets[known, column])
        # Ours is C sum over its rows, too: what is passed over changes nothing else.
        assert classifier.weight[:, column].numpy() == pytest.approx(peer.coef_[0], abs=1e-3)
        assert float(classifier.bias[column]) == pytest.approx(peer.intercept_[0], abs=1e-3)


def test_one_c_is_chosen_for_all_classes_by_mean_average_precision(digits):
    x, y = digits[0][:400], digits[1][:400]
    targets = torch.stack([y < 3, y % 2 == 0, y == 8], 1).int()
    split = holdout(y, 0.3, 2)
    _, cost = fit_logistic(x, targets, split, FEW)
    by_cost = {}
    for one in FEW.costs:
        alone = Split(fitted=split.fitted, held=split.held, final=split.fitted)
        # Standardized by all rows, as while choosing.
        found, _ = fit_logistic(x, targets, alone, dataclasses.replace(FEW, costs=(one,)))
        by_cost[one] = mean_average_precision(found.logits(x[split.held]), targets[split.held])
    assert by_cost[cost] == pytest.approx(max(by_cost.values()), abs=0.003)
    assert max(by_cost.values()) > min(by_cost.values()) + 0.01
