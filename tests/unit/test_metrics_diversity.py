"""The mean pairwise cosine distance of a class."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from corecli.base.errors import DataError
from corecli.metrics import diversity as module
from corecli.metrics.diversity import diversity


def test_diversity_is_the_mean_over_all_pairs_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((60, 5)) * 10 + 3, rng.permutation(np.arange(60) % 4 * 7)
    labels[labels == 21] = 7  # classes of 15, 30 and 15
    labels[0] = 99  # and one without pairs
    means = []
    for label in (0, 7, 14):
        rows = x[labels == label]
        means.append(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(rows, 2)]))
    monkeypatch.setattr(module, "_ROWS_PER_BLOCK", 17)
    assert diversity(torch.from_numpy(x), torch.from_numpy(labels)) == pytest.approx(float(np.mean(means)), abs=1e-12)


def test_copies_have_diversity_0_and_random_directions_1() -> None:
    labels = torch.zeros(500, dtype=torch.int64)
    assert diversity(torch.ones(500, 3) * torch.arange(1, 501)[:, None], labels) == pytest.approx(0, abs=1e-12)
    assert diversity(torch.randn(500, 64, generator=torch.Generator().manual_seed(0)), labels) == pytest.approx(
        1, abs=0.01
    )
    poles = torch.tensor([[1.0, 0], [-1, 0]])
    assert diversity(poles, labels[:2]) == pytest.approx(2)


def test_missing_labels_and_single_images_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 images have no label"):
        diversity(torch.ones(2, 3), torch.tensor([0, -1]))
    with pytest.raises(DataError, match="no class has two images"):
        diversity(torch.ones(2, 3), torch.tensor([0, 1]))
