"""The stacked probe against one classifier at a time, scikit-learn, and its own promises."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts import linear_probe as module
from corecli.metrics.parts.fitting import holdout
from corecli.metrics.parts.linear_probe import ProbeOptions, fit_probe, linear_probe
from corecli.metrics.parts.scores import student_interval, wilson_interval

QUICK = ProbeOptions(learning_rates=(0.03, 0.3), weight_decays=(0.0, 1e-3), num_epochs=2, min_steps=60, batch_size=32)
Split = tuple[Tensor, Tensor, Tensor, Tensor]


def clusters(num: int, seed: int, classes: int = 7, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    centers = torch.randn(classes, 12, generator=torch.Generator().manual_seed(99))
    return 3 + 5 * (centers[labels] + noise * torch.randn(num, 12, generator=generator)), labels


@pytest.fixture(scope="module")
def digits() -> Split:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    x, y = torch.tensor(bunch.data).float(), torch.tensor(bunch.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    return x[order[:1000]], y[order[:1000]], x[order[1000:]], y[order[1000:]]


def test_accuracy_is_that_of_scikit_learns_logistic_regression(digits):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, x_test, y_test = digits
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-9)
    peer = linear_model.LogisticRegression(max_iter=1000).fit((x - mean) / deviation, y)
    expected = peer.score((x_test - mean) / deviation, y_test)
    found = linear_probe(*digits)
    assert found.top1 == pytest.approx(expected, abs=0.012)
    assert found.top5 > 0.99
    assert found.test_interval[0] < expected < found.test_interval[1]


def test_stacked_heads_equal_one_torch_classifier_each():
    x, y = clusters(90, 0)
    options = dataclasses.replace(QUICK, num_epochs=3, min_steps=1)
    settings = [(0.05, 0.0), (0.5, 0.01), (0.2, 0.1)]
    train = module._Rows.scaled(x, y, torch.arange(90))
    heads = module._fit(train, torch.arange(90), settings, options, seed=5)
    weights = heads.weight.view(12, 3, 7)
    batches = module._batches(90, options, seed=5)
    for k, (rate, decay) in enumerate(settings):
        linear = torch.nn.Linear(12, 7)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        groups = [{"params": [linear.weight], "weight_decay": decay}, {"params": [linear.bias]}]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
            standard = (x - x.mean(0)) / x.std(0, correction=0)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(standard[batch]), y[batch]).backward()
            optimizer.step()
        torch.testing.assert_close(weights[:, k].T, linear.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(heads.bias.view(3, 7)[k], linear.bias.detach(), rtol=1e-3, atol=1e-4)


def test_a_head_that_diverges_harms_no_other():
    x, y = clusters(200, 1)
    rows = torch.arange(200)
    train = module._Rows.scaled(x, y, rows)
    alone = module._fit(train, rows, [(0.1, 0.0)], QUICK, seed=0)
    beside = module._fit(train, rows, [(1e38, 0.0), (0.1, 0.0)], QUICK, seed=0)
    assert not torch.isfinite(beside.logits(x)[:, 0]).all()
    (bad, good), losses = beside.judged(train, rows)
    assert bad < 100
    same, loss = alone.judged(train, rows)
    assert (int(good), float(losses[1])) == (int(same), pytest.approx(float(loss)))


def test_the_same_call_gives_the_same_result_and_seeds_differ():
    split = (*clusters(200, 2), *clusters(150, 3))
    assert linear_probe(*split, QUICK).top1 == linear_probe(*split, QUICK).top1
    many = linear_probe(*split, QUICK, seeds=(0, 1))
    assert many.top1_by_seed[1:] == linear_probe(*split, QUICK, seeds=(1,)).top1_by_seed


def test_the_setting_is_chosen_by_the_rows_held_out():
    x, y = clusters(200, 4)
    split = holdout(y, 0.1, 0)
    _, setting = fit_probe(x, y, split, QUICK)
    wrong = y.clone()
    wrong[split.held] = (y[split.held] + 3) % 7
    _, other = fit_probe(x, wrong, split, QUICK)
    assert setting != other


def test_result_adds_up():
    x, y = clusters(210, 6, noise=0.8)
    x_test, y_test = clusters(140, 7, noise=0.8)
    found = linear_probe(x, y * 10, x_test, y_test * 10, QUICK, seeds=(0, 1, 2))
    assert list(found.per_class) == [0, 1, 2, 3, 4, 5, 6]
    assert found.mean_per_class == pytest.approx(found.top1)  # the classes are equally frequent
    assert found.top1 == pytest.approx(np.mean(found.top1_by_seed))
    assert found.top1 <= found.top5 <= 1
    assert found.seed_interval[0] <= found.top1 <= found.seed_interval[1]
    assert found.test_interval[0] < found.top1 < found.test_interval[1]
    assert found.confusion.sum(1).tolist() == [20] * 7
    assert found.confusion.diag().sum() / 140 == pytest.approx(found.top1)
    assert (found.num_test, found.num_classes) == (140, 7)


def test_mean_per_class_weighs_rare_classes_alike():
    x, y = clusters(300, 8, noise=1.5)
    x_test, y_test = clusters(140, 9, noise=1.5)
    keep = (y_test != 0) | (torch.arange(140) < 7)
    found = linear_probe(x, y, x_test[keep], y_test[keep], QUICK)
    assert found.mean_per_class == pytest.approx(np.mean(list(found.per_class.values())))
    assert found.mean_per_class != pytest.approx(found.top1)


def test_a_shift_and_scale_of_features_change_nothing():
    x, y = clusters(200, 10)
    x_test, y_test = clusters(100, 11)
    found = linear_probe(x, y, x_test, y_test, QUICK)
    other = linear_probe(x * 1000 - 5000, y, x_test * 1000 - 5000, y_test, QUICK)
    assert other.top1 == pytest.approx(found.top1, abs=0.011)


def test_constant_features_are_ignored():
    x, y = clusters(200, 12)
    padded = torch.cat([x, torch.full((200, 3), 7.0)], 1)
    assert linear_probe(padded, y, padded, y, QUICK).top1 == linear_probe(x, y, x, y, QUICK).top1


def test_few_classes_have_no_top5_and_one_seed_no_seed_interval():
    x, y = clusters(100, 13, classes=3)
    found = linear_probe(x, y, x, y, QUICK)
    assert found.top5 is None
    assert found.seed_interval is None


def test_holdout_takes_its_share_of_every_class():
    labels = torch.from_numpy(np.repeat([0, 1, 2, 3], [100, 40, 2, 1]))
    split = holdout(labels, 0.1, seed=0)
    assert labels[split.held].bincount(minlength=4).tolist() == [10, 4, 1, 0]
    assert sorted([*split.fitted.tolist(), *split.held.tolist()]) == split.final.tolist() == list(range(143))
    part = holdout(labels, 0.5, seed=0, rows=torch.arange(100, 142))
    assert labels[part.held].bincount(minlength=4).tolist() == [0, 20, 1, 0]
    assert sorted([*part.fitted.tolist(), *part.held.tolist()]) == part.final.tolist() == list(range(100, 142))


def test_batches_visit_every_row_of_an_epoch_once():
    batches = module._batches(100, ProbeOptions(num_epochs=2, min_steps=1, batch_size=20), seed=0)
    assert len(batches) == 10
    assert sorted(torch.cat(batches[:5]).tolist()) == list(range(100))
    assert not torch.equal(torch.cat(batches[:5]), torch.cat(batches[5:]))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([1] * 6, [1] * 6, "train: all images have the label 1"),
        ([-1, 0, 0, 1, 1, 1], [0] * 6, "train: 1 of 6 images have no label"),
        ([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 0, 0], "test: labels 2, 3 do not occur in train"),
        ([0, 1, 2, 3, 4, 5], [0] * 6, "train: every class has only one image"),
    ],
)
def test_labels_that_cannot_be_probed_are_refused(train, test, words):
    x = torch.arange(12.0).view(6, 2)
    with pytest.raises(DataError, match=words):
        linear_probe(x, torch.tensor(train), x, torch.tensor(test), QUICK)


def test_intervals_equal_published_values():
    """Wilson: 81 of 263, Newcombe 1998, Table I; Student: t(2, 0.975) = 4.302653."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(1.0, 20)[1] == pytest.approx(1)
    low, high = student_interval([0.1, 0.2, 0.3])
    assert (high - low) / 2 == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
