"""Kernel Inception distance over all pairs of images, with a jackknife interval; unbiased, so it may be negative.

This is the squared maximum mean discrepancy under the kernel (x y / D + 1)^3, as the U-statistic over all pairs
(Gretton et al. 2012, Eq. 3, for sets of two sizes). Other tools average the same statistic over random subsets
(Binkowski et al. 2018, section 4): see `kid_subsets`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corecli.metrics.parts.folds import NUM_FOLDS, jackknife
from corecli.metrics.parts.metric import Score, Scores
from corecli.metrics.parts.survey import KernelSums

NEEDS = ("kernel",)
SCORES = {"kid": "lower"}
PLACE = 4
FEWEST = 6


@dataclass(frozen=True, kw_only=True)
class Kid:
    """The distance and, if each set keeps two images without any one fold, its standard error and 95% interval."""

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None


def compute(*, kernel: KernelSums) -> Scores:
    """Return the distance between two surveyed sets."""
    found = kid(kernel)
    return {"kid": Score(value=found.value, interval=found.interval)}


def kid(sums: KernelSums) -> Kid:
    """Return the distance between two surveyed sets; the jackknife leaves the same fold out of both."""
    value = _mmd2(sums, None)
    filled = [bool((num > 0).all() and num.sum() - num.max() >= 2) for num in (sums.num_samples, sums.num_reference)]
    if not all(filled):
        return Kid(value=value, standard_error=None, interval=None)
    _, error, interval = jackknife(value, [_mmd2(sums, fold) for fold in range(NUM_FOLDS)])
    return Kid(value=value, standard_error=error, interval=interval)


def _mmd2(sums: KernelSums, left_out: int | None) -> float:
    """Return the unbiased estimate from all rows, or from all but one fold."""
    keep = torch.ones(NUM_FOLDS, dtype=torch.float64, device=sums.between.device)
    if left_out is not None:
        keep[left_out] = 0
    n, m = float(sums.num_samples @ keep), float(sums.num_reference @ keep)
    own, theirs, between = (float(keep @ part @ keep) for part in (sums.samples, sums.reference, sums.between))
    return own / (n * (n - 1)) + theirs / (m * (m - 1)) - 2 * between / (n * m)
