"""FD-infinity and the distance by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator
from corecli.metrics.fd_infinity import fd_infinity
from corecli.metrics.parts.frechet import Gaussian, distance, gaussian_of
from corecli.metrics.per_class import frechet_per_class


def rows(num: int, dim: int, seed: int, *, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_extrapolated_distance_is_the_true_one():
    """The distance between shifted Gaussians is the squared shift; 1500 samples give a larger distance."""
    reference = Gaussian.of(torch.zeros(16), torch.eye(16))
    limits = [fd_infinity(rows(1500, 16, seed, shift=0.3), reference, seed=seed) for seed in range(12)]
    plain = np.mean([distance(gaussian_of(rows(1500, 16, seed, shift=0.3)), reference) for seed in range(12)])
    truth = 16 * 0.3**2
    assert plain > truth + 0.04
    assert np.mean(limits) == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("dim", [6, 40], ids=["full-rank", "fewer-rows-than-dimensions"])
def test_equals_a_fit_to_the_distances_of_nested_subsets(dim):
    x, reference = rows(100, dim, 0), gaussian_of(rows(300, dim, 1))
    shuffled = {}
    found = fd_infinity(x, reference, seed=3)
    order = torch.from_numpy(numpy_generator(3, "fd-infinity").permutation(100))
    for num in np.linspace(10, 100, 15).round().astype(int):
        shuffled[num] = distance(gaussian_of(x[order[:num]]), reference)
    design = np.stack([1 / np.array(list(shuffled)), np.ones(15)], axis=1)
    expected = np.linalg.lstsq(design, np.array(list(shuffled.values())), rcond=None)[0][1]
    assert found == pytest.approx(expected, rel=1e-7)
    assert fd_infinity(x, reference, seed=4) != found


def test_too_few_samples_are_refused():
    with pytest.raises(DataError, match="19 samples are too few"):
        fd_infinity(rows(19, 3, 0), gaussian_of(rows(30, 3, 1)))


def test_each_class_has_its_own_distance():
    x, y = rows(40, 5, 0), rows(60, 5, 1)
    labels, others = torch.arange(40) % 4, torch.arange(60) % 3 + 1
    found = frechet_per_class(x, labels, y, others)
    assert found.keys() == {1, 2, 3}
    expected = distance(gaussian_of(x[labels == 2]), gaussian_of(y[others == 2]))
    assert found[2] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "words"),
    [(torch.full((10,), -1), "samples: 10 of 10 images have no label"), (torch.arange(10), "no class has two images")],
)
def test_sets_without_classes_are_refused(labels, words):
    with pytest.raises(DataError) as raised:
        frechet_per_class(rows(10, 3, 0), labels, rows(10, 3, 1), torch.arange(10) // 2)
    assert words in str(raised.value)
