"""Neighbor search in tiles, and the classifier on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts import knn
from corecli.metrics.parts.knn import knn_classify, knn_predict, most_similar


def rows(num: int, dim: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture(params=[7, 4096], ids=["small-tiles", "one-tile"])
def tiles(request, monkeypatch) -> None:
    monkeypatch.setattr(knn, "_TILE", request.param)


@pytest.mark.usefixtures("tiles")
def test_most_similar_equals_the_full_matrix():
    queries, references = rows(20, 6, 0), rows(50, 6, 1)
    cosines = F.normalize(queries.double()) @ F.normalize(references.double()).T
    expected, where = cosines.topk(4)
    found, indices = most_similar(queries, references, 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(indices, where)


def reference_knn(train: Tensor, labels: Tensor, test: Tensor, k: int, tau: float) -> Tensor:
    """Votes one by one, in float64."""
    found = []
    for query in F.normalize(test.double()):
        cosines = F.normalize(train.double()) @ query
        votes = torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
        for i in cosines.argsort(descending=True)[:k]:
            votes[labels[i]] += (cosines[i] / tau).exp()
        found.append(votes.argsort(descending=True))
    return torch.stack(found)


def test_classifier_equals_votes_counted_one_by_one():
    train, test = rows(200, 8, 4), rows(60, 8, 5)
    labels, truth = train[:, :7].argmax(1), test[:, :7].argmax(1)
    ranked = reference_knn(train, labels, test, 20, 0.07)
    found = knn_classify(train, labels, test, truth)
    assert found.top1 == pytest.approx(float((ranked[:, 0] == truth).double().mean()))
    assert found.top5 == pytest.approx(float((ranked[:, :5] == truth[:, None]).any(1).double().mean()))
    assert (found.k, found.num_train, found.num_test, found.num_classes) == (20, 200, 60, 7)


def test_labels_need_not_be_contiguous_and_k_is_cut_to_the_set():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    found = knn_classify(x, torch.tensor([40, 40, 7]), x, torch.tensor([40, 40, 7]))
    assert (found.top1, found.top5, found.k, found.num_classes) == (1.0, None, 3, 2)


def test_small_tau_does_not_overflow():
    x = rows(30, 4, 6)
    labels = torch.arange(30) % 3
    assert knn_classify(x, labels, x, labels, tau=1e-3).top1 == 1.0


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([1, 1, 1], [1, 1], "train: all images have the label 1"),
        ([0, 1, -1], [0, 1], "train: 1 of 3 images have no label"),
        ([0, 1, 1], [-1, -1], "test: 2 of 2 images have no label"),
        ([0, 1, 1], [0, 5], "test: labels 5 do not occur in train"),
        ([0, 1], [0, 1], r"train: features \(3, 2\) and labels \(2,\)"),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(train, test, words):
    with pytest.raises(DataError, match=words):
        knn_classify(torch.ones(3, 2), torch.tensor(train), torch.ones(2, 2), torch.tensor(test))


def test_nan_and_empty_sets_are_refused():
    labels = torch.tensor([0, 1])
    with pytest.raises(DataError, match="test: features contain NaN"):
        knn_classify(torch.eye(2), labels, torch.full((2, 2), torch.nan), labels)
    with pytest.raises(DataError, match="test: no images"):
        knn_classify(torch.eye(2), labels, torch.ones(0, 2), labels[:0])


def test_several_k_and_some_of_the_classes_equal_votes_counted_one_by_one():
    train, test = rows(150, 8, 7), rows(50, 8, 8)
    labels, truth = train[:, :7].argmax(1), test[:, 2:5].argmax(1) + 2
    among = torch.tensor([False, False, True, True, True, False, False])
    found = knn_predict(train, labels, test, truth, ks=[9, 3, 500], tau=0.2, among=among)
    for k, predictions in zip((9, 3, 150), found, strict=True):
        ranked = reference_knn(train, labels, test, k, 0.2)
        ranked = torch.stack([row[among[row]] for row in ranked])
        assert torch.equal(predictions.predicted, ranked[:, 0])
        assert torch.equal(predictions.ranks, (ranked == truth[:, None]).int().argmax(1))
