"""FD-infinity: the Frechet distance extrapolated to infinitely many samples.

The distance of N samples is too large by an amount that falls as 1 / N (Chong & Forsyth 2020, section 3). A line in
1 / N is fitted to the distances of 15 subsets, from a tenth of the samples to all, and evaluated at 1 / N = 0. The
subsets are nested parts of one shuffle, so their products are summed only once. The corrected distance of `fd` removes
the same bias with half the spread; this metric is for comparison with published figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator
from corecli.metrics.parts.frechet import Gaussian, Moments, as_gaussian, distance, gaussian_of

NEEDS = ("samples", "reference_moments", "seed")
SCORES = {"fd_infinity": "lower"}
PLACE = 8
NUM_POINTS = 15
_FEWEST_SAMPLES = 20  # a tenth of them has a covariance


def compute(*, samples: Tensor, reference_moments: Moments | Gaussian, seed: int) -> dict[str, float]:
    """Return the extrapolated distance. Errors: DataError for fewer than 20 samples or values that are not finite."""
    return {"fd_infinity": fd_infinity(samples, as_gaussian(reference_moments), seed=seed)}


def fd_infinity(samples: Tensor, reference: Gaussian, *, seed: int = 0) -> float:
    """Return the limit of the distance of samples [N, D], shuffled with `seed`, to a reference that is taken as exact.

    The limit may be negative. Errors: DataError for fewer than 20 samples or values that are not finite.
    """
    if len(samples) < _FEWEST_SAMPLES:
        reason = f"{len(samples)} samples are too few"
        raise DataError(reason, hint=f"use at least {_FEWEST_SAMPLES}")
    sizes = np.linspace(len(samples) // 10, len(samples), NUM_POINTS).round().astype(int)
    order = torch.from_numpy(numpy_generator(seed, "fd-infinity").permutation(len(samples)))
    subsets = _nested_subsets(samples, order.to(samples.device), sizes.tolist())
    distances = [distance(gaussian, reference) for gaussian in subsets]
    _, limit = np.polyfit(1 / sizes, distances, 1)
    return float(limit)


def _nested_subsets(samples: Tensor, order: Tensor, sizes: Sequence[int]) -> Iterator[Gaussian]:
    """Yield the Gaussians of the first sizes[0], sizes[1], ... samples in this order."""
    dim = samples.shape[1]
    total = torch.zeros(dim, dtype=torch.float64, device=samples.device)
    products = torch.zeros(dim, dim, dtype=torch.float64, device=samples.device)
    for start, num in zip([0, *sizes[:-1]], sizes, strict=True):
        block = samples[order[start:num]].double()
        total += block.sum(0)
        products.addmm_(block.T, block)
        if num <= dim:
            yield gaussian_of(samples[order[:num]])
            continue
        mean = total / num
        yield Gaussian(mean=mean, covariance=products.addr(mean, mean, alpha=-num).div_(num - 1), num=num)
