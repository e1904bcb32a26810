"""FD-infinity: the Frechet distance that more and more samples would end at, by a line in 1 / N through fewer samples.

The distance of N samples is too large by an amount that falls as 1 / N (Chong & Forsyth 2020, section 3); the line is
fitted to 15 numbers of samples from a tenth of them to all, and its value at 1 / N = 0 is told. The subsets are nested
beginnings of one shuffle, so that the products of all are summed once. The jackknife's corrected distance (`frechet`)
removes the same bias with half the spread; this one is for comparison with published figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator
from corecli.metrics.frechet import Gaussian, distance, gaussian_of

DIRECTION = {"fd_infinity": "lower"}
NUM_POINTS = 15
_FEWEST = 20  # samples; a tenth of them has a covariance


def compute(*, samples: Tensor, reference: Tensor) -> dict[str, float]:
    """`fd_infinity` of samples [N, D] to reference [M, D]. Errors: DataError."""
    return {"fd_infinity": fd_infinity(samples, gaussian_of(reference))}


def fd_infinity(samples: Tensor, reference: Gaussian, *, seed: int = 0) -> float:
    """The limit of the distance of samples [N, D], shuffled by `seed`, to a reference that is taken as it is.

    It may be negative. Errors: DataError for fewer than 20 samples, or values that are not finite.
    """
    if len(samples) < _FEWEST:
        raise DataError(
            f"{len(samples)} samples are too few to extrapolate from", hint=f"at least {_FEWEST} are needed"
        )
    sizes = np.linspace(len(samples) // 10, len(samples), NUM_POINTS).round().astype(int)
    order = torch.from_numpy(numpy_generator(seed, "fd-infinity").permutation(len(samples)))
    beginnings = _beginnings(samples, order.to(samples.device), sizes.tolist())
    distances = [distance(gaussian, reference) for gaussian in beginnings]
    _, limit = np.polyfit(1 / sizes, distances, 1)
    return float(limit)


def _beginnings(samples: Tensor, order: Tensor, sizes: Sequence[int]) -> Iterator[Gaussian]:
    """The Gaussians of the first sizes[0], sizes[1], ... samples in that order."""
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
