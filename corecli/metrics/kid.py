"""Kernel Inception distance: the squared maximum mean discrepancy under (x y / D + 1)^3, without bias at any size.

The U-statistic over all pairs is used as it is (Gretton et al. 2012, Eq. 3 for sets of two sizes); the ten-fold
jackknife gives its interval. Other tools average the same statistic over random subsets of 1000 (Binkowski et al. 2018,
section 4): `kid_of_subsets` is that one, for comparison with published figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.folds import NUM_FOLDS, jackknife
from corecli.metrics.parts.survey import KernelSums, kernel_values, survey

DIRECTION = {"kid": "lower"}
_WHOLE_ROWS = 4096  # up to here the kernel of all rows is cheaper than those of 100 subsets


@dataclass(frozen=True, kw_only=True)
class Kid:
    """The distance, and where every fold leaves two images of a set, its standard error and 95 % interval."""

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None


def compute(*, samples: Tensor, reference: Tensor) -> dict[str, float]:
    """`kid` of samples [N, D] to reference [M, D]; it may be negative. Errors: DataError."""
    sums = survey(samples, reference, ("kernel",)).kernel
    assert sums is not None
    return {"kid": kid(sums).value}


def kid(sums: KernelSums) -> Kid:
    """The distance of two surveyed sets. Both lose their folds in step. Errors: DataError for sets of one image."""
    value = _mmd2(sums, None)
    filled = [bool((num > 0).all() and num.sum() - num.max() >= 2) for num in (sums.num_samples, sums.num_reference)]
    if not all(filled):
        return Kid(value=value, standard_error=None, interval=None)
    _, error, interval = jackknife(value, [_mmd2(sums, fold) for fold in range(NUM_FOLDS)])
    return Kid(value=value, standard_error=error, interval=interval)


def kid_of_subsets(
    samples: Tensor, reference: Tensor, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation of the distance over random subsets, drawn as torch-fidelity draws them.

    Subsets are cut to the smaller of the sets. Errors: DataError for fewer than two images.
    """
    size = min(subset_size, len(samples), len(reference))
    if size < 2:
        raise DataError(f"{size} image(s) have no kernel distance", hint="at least 2 a set are needed")
    draws, device = np.random.RandomState(seed), samples.device
    rows = [
        torch.from_numpy(draws.choice(len(z), size, replace=False))
        for _ in range(num_subsets)
        for z in (samples, reference)
    ]
    mine, theirs = torch.stack(rows[::2]).to(device), torch.stack(rows[1::2]).to(device)
    if max(len(samples), len(reference)) <= _WHOLE_ROWS:
        values = _of_subsets(samples, reference, mine, theirs)
    else:
        every = torch.arange(size, device=device)[None]
        pairs = zip(mine, theirs, strict=True)
        values = torch.cat([_of_subsets(samples[x], reference[y], every, every) for x, y in pairs])
    return float(values.mean()), float(values.std(correction=0))


def _of_subsets(samples: Tensor, reference: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    """The distances [S] of subsets, rows int64 [S, size] of each set, from the kernels of all rows."""
    size = mine.shape[1]
    w, v = (
        torch.zeros(len(rows), len(z), dtype=torch.float64, device=z.device).scatter_(1, rows, 1.0)
        for rows, z in ((mine, samples), (theirs, reference))
    )
    own, other = (((u @ kernel_values(z, z).fill_diagonal_(0)) * u).sum(1) for u, z in ((w, samples), (v, reference)))
    between = ((w @ kernel_values(samples, reference)) * v).sum(1)
    return (own + other) / (size * (size - 1)) - 2 * between / size**2


def _mmd2(sums: KernelSums, left_out: int | None) -> float:
    """Unbiased, of all rows or of all but one fold."""
    keep = torch.ones(NUM_FOLDS, dtype=torch.float64, device=sums.between.device)
    if left_out is not None:
        keep[left_out] = 0
    n, m = float(sums.num_samples @ keep), float(sums.num_reference @ keep)
    own, theirs, between = (float(keep @ part @ keep) for part in (sums.samples, sums.reference, sums.between))
    return own / (n * (n - 1)) + theirs / (m * (m - 1)) - 2 * between / (n * m)
