"""The survey of all pairs, against full matrices in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts import survey as module
from corecli.metrics.parts.folds import folds_of
from corecli.metrics.parts.survey import Neighbors, kernel_values, survey


def rows(num: int, dim: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


def full(x: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf) if x is y else distances


@pytest.fixture(params=[7, 2048], ids=["small-tiles", "one-tile"])
def tiles(request, monkeypatch) -> None:
    monkeypatch.setattr(module, "_TILE", request.param)


def assert_nearest(found: Neighbors | None, x: Tensor, y: Tensor, k: int) -> None:
    assert found is not None
    expected = full(x, y).topk(k, dim=1, largest=False)
    torch.testing.assert_close(found.distances, expected.values, rtol=1e-6, atol=0)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.usefixtures("tiles")
def test_neighbors_equal_the_full_matrix():
    x, y = rows(20, 6, 0, shift=100), rows(50, 6, 1, shift=100)
    found = survey(x, y, ("nearest", "balls")).nearest
    assert found is not None
    assert_nearest(found.to_reference, x, y, 2)
    assert_nearest(found.among_samples, x, x, 5)
    assert_nearest(found.among_reference, y, y, 5)
    alone = survey(x, y, ("nearest",))
    assert alone.nearest is not None
    assert (alone.nearest.among_samples, alone.balls, alone.kernel) == (None, None, None)
    assert_nearest(alone.nearest.among_reference, y, y, 1)


@pytest.mark.usefixtures("tiles")
def test_balls_equal_the_full_matrix():
    x, y = rows(60, 3, 0), rows(50, 3, 1) + 0.5
    found = survey(x, y, ("balls",)).balls
    assert found is not None
    own, theirs = (full(z, z).sort(1).values for z in (x, y))
    between = full(x, y)
    assert torch.equal(found.inside_reference, (between <= theirs[:, 2]).any(1))
    assert torch.equal(found.inside_samples, (between <= own[:, 2, None]).any(0))
    assert torch.equal(found.counts, (between < theirs[:, 4]).sum(1))
    assert torch.equal(found.covered, (between < theirs[:, 4]).any(0))
    assert 0 < found.inside_reference.sum() < 60


@pytest.mark.usefixtures("tiles")
def test_a_row_on_the_edge_of_a_ball_is_in_it_when_closed_and_not_when_open():
    """Every sample is a copy of a real row, so that many lie at exactly the radius of a neighbor's ball."""
    x = rows(40, 512, 2, shift=3)
    found = survey(x, x.clone(), ("balls",)).balls
    assert found is not None
    assert found.inside_reference.all()
    assert found.counts.double().mean() == 5  # oneself and the four nearer than the fifth


@pytest.mark.usefixtures("tiles")
def test_kernel_sums_equal_the_full_matrix():
    x, y = rows(30, 64, 3, shift=2).relu(), rows(40, 64, 4, shift=2).relu()
    numbers = torch.arange(100, 130), torch.arange(40) // 2
    found = survey(x, y, ("kernel",), rows=numbers).kernel
    assert found is not None
    for sums, a, b, i, j in ((found.samples, x, x, 0, 0), (found.reference, y, y, 1, 1), (found.between, x, y, 0, 1)):
        kernel = (a.double() @ b.double().T / 64 + 1) ** 3
        kernel = kernel.fill_diagonal_(0) if a is b else kernel
        first, second = folds_of(numbers[i]), folds_of(numbers[j])
        for p, q in ((0, 0), (2, 7), (9, 9)):
            expected = kernel[first == p][:, second == q].sum()
            torch.testing.assert_close(sums[p, q], expected, rtol=1e-7, atol=1e-9)
    assert found.num_samples.sum() == 30
    assert found.num_reference.max() % 2 == 0


def test_kernel_values_are_as_exact_as_float64():
    x, y = rows(50, 2048, 5, shift=1).relu(), rows(60, 2048, 6, shift=1).relu()
    expected = (x.double() @ y.double().T / 2048 + 1) ** 3
    torch.testing.assert_close(kernel_values(x, y), expected, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("tiles")
def test_a_row_is_not_its_own_neighbor_but_its_duplicate_is():
    x = rows(30, 5, 2)
    x[21] = x[4]
    nearest = survey(x[:1], x, ("nearest",)).nearest
    assert nearest is not None
    found = nearest.among_reference
    assert found.distances[4] == found.distances[21] == 0
    assert (found.indices[4], found.indices[21]) == (21, 4)


def test_pixels_are_read_and_exact_copies_found():
    real = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    nearest = survey(real[[5, 9]], real, ("nearest",)).nearest
    assert nearest is not None
    found = nearest.to_reference
    assert found.distances[:, 0].tolist() == [0, 0]
    assert found.indices[:, 0].tolist() == [5, 9]


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (rows(5, 3, 0), rows(9, 3, 0), "5 samples and 9 reference images are too few"),
        (rows(9, 3, 0), rows(9, 4, 0), "differ in shape"),
        (rows(9, 3, 0).fill_(torch.inf), rows(9, 3, 0), "NaN or infinity"),
        (rows(9, 3, 0), rows(9, 3, 0).fill_(torch.nan), "NaN or infinity"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(x, y, words):
    with pytest.raises(DataError, match=words):
        survey(x, y, ("balls",))
