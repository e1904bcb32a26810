"""Neighbors in feature space: which they are, and how one is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corecli.base.errors import DataError
from corecli.data import neighbors as neighbors
from corecli.data.neighbors import Neighbors, nearest

NUM, DIM, K = 60, 5, 4


def features() -> torch.Tensor:
    return torch.randn(NUM, DIM, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, NUM)[:, None]


@pytest.mark.parametrize("at_once", [7 * NUM, 10**6])
def test_they_have_the_largest_cosine_without_the_row_itself(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_MOST_SIMILARITIES", at_once)
    z = features().double().numpy()
    cosine = z @ z.T / np.linalg.norm(z, axis=1) / np.linalg.norm(z, axis=1)[:, None]
    np.fill_diagonal(cosine, -2)
    expected = np.argsort(-cosine, axis=1)[:, :K]
    assert np.array_equal(nearest(features(), K), expected)


def test_twins_are_neighbors_and_a_row_is_not_its_own() -> None:
    twins = features()[[0, 1, 2, 0, 1, 2]]
    assert nearest(twins, 1)[:, 0].tolist() == [3, 4, 5, 0, 1, 2]


def test_one_of_them_is_drawn_as_often_as_another() -> None:
    chooser, rows = Neighbors(features(), K, seed=0), np.arange(NUM)
    table = nearest(features(), K)
    shown = np.stack([chooser.of(rows, (0, epoch))[0] for epoch in range(500)])
    assert shown.dtype == np.int64
    counts = (shown[:, :, None] == table).sum(0)
    assert (counts.sum(1) == 500).all()  # nothing but neighbors
    chi_square = ((counts - 500 / K) ** 2 / (500 / K)).sum()
    assert chi_square < 1.4 * NUM * (K - 1)


def test_the_draw_is_a_function_of_seed_epoch_and_row() -> None:
    rows = np.array([3, 50, 3, 7])
    first = Neighbors(features(), K, seed=0)
    whole = first.of(np.arange(NUM), (0, 2))[0]
    assert first.num_entries == 1
    assert np.array_equal(first.of(rows, (0, 2)), whole[rows][None])
    again = Neighbors(features(), K, seed=0)
    again.of(rows, (1, 0))
    assert np.array_equal(again.of(rows, (0, 2)), whole[rows][None])
    others = [Neighbors(features(), K, seed=1).of(np.arange(NUM), (0, 2))]
    others += [first.of(np.arange(NUM), epoch) for epoch in ((0, 3), (1, 2))]
    assert all((other[0] != whole).any() for other in others)


@pytest.mark.parametrize("num", [0, NUM, NUM + 5])
def test_more_neighbors_than_there_are_are_refused(num: int) -> None:
    with pytest.raises(DataError, match=f"{num} neighbors per image are too many for {NUM} images"):
        Neighbors(features(), num, seed=0)
