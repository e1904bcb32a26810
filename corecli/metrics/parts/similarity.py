"""Distances between two feature spaces on the same images; rotation, shift and scale do not change them.

Each is 0 for spaces that differ only by rotation, shift and scale. `cka` is 1 minus the linear CKA, in 0..1;
`cka_debiased` is the same from unbiased estimates and near 1 for independent features; `opd` is the orthogonal
Procrustes distance, in 0..2. The computation takes products of features with features (P x Q), never of images with
images.

`cka` and `opd` are too small for few images, because any two clouds of few points in many dimensions can be rotated
onto each other. For independent Gaussians of 512 and 256 dimensions and 256, 1000 and 4000 images, cka is 0.42, 0.74
and 0.92, and opd is 0.39, 1.09 and 1.53, while cka_debiased is within 0.01 of 1.

Sources: CKA: Kornblith et al. 2019, section 3; its debiased form: Nguyen et al. 2021, Eq. 3; OPD: Ding et al. 2021,
section 2, in the nuclear-norm form, which also holds where the spaces have different dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator

_ROWS_PER_BLOCK = 8192
_FEWEST = 4  # images: the unbiased estimate divides by num - 2 and subtracts nearly equal terms
_ROUNDING = 1e-12
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Distances between two feature spaces; cka_debiased is NaN if all images of one space are equally far apart."""

    cka: float
    cka_debiased: float
    opd: float


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """The distances between two feature spaces, and those on resamples of the images."""

    value: Similarity
    resamples: Sequence[Similarity] = ()

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95% bootstrap interval of the distance `name`, or None without resamples."""
        if not self.resamples:
            return None
        low, high = np.nanquantile([getattr(resample, name) for resample in self.resamples], _QUANTILES).tolist()
        return low, high


def similarity(first: Tensor, second: Tensor) -> Similarity:
    """Return the distances between features [N, P] and [N, Q] of the same images, computed in float64.

    Errors: DataError for fewer than 4 images, unequal numbers of rows, or features that are constant or not finite.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise DataError(f"features {tuple(first.shape)} and {tuple(second.shape)} do not belong to the same images")
    num = len(first)
    if num < _FEWEST:
        raise DataError(f"{num} images are too few to compare two feature spaces", hint=f"use at least {_FEWEST}")
    xy, xx, yy = (_Products.of(*pair) for pair in ((first, second), (first, first), (second, second)))
    if not all(0 < own.traces < math.inf for own in (xx, yy)):
        raise DataError("features are constant or contain NaN or infinity")
    nuclear = float(torch.linalg.svdvals(xy.matrix).sum())
    return Similarity(
        cka=max(0.0, 1 - xy.biased() / math.sqrt(xx.biased() * yy.biased())),
        cka_debiased=_debiased(*(products.unbiased(num) for products in (xy, xx, yy))),
        opd=max(0.0, 2 - 2 * nuclear / math.sqrt(xy.traces)),
    )


def bootstrap(first: Tensor, second: Tensor, *, num_resamples: int, seed: int) -> Iterator[Similarity]:
    """Yield the distances on resamples of the images, which are drawn with replacement.

    An image that is drawn twice is at distance 0 from itself in both spaces. Therefore resamples have lower distances
    than the original images, and so do intervals from resamples. Errors: as `similarity`.
    """
    for index in range(num_resamples):
        rows = torch.from_numpy(numpy_generator(seed, "bootstrap", index).integers(0, len(first), len(first)))
        yield similarity(first[rows], second[rows])


@dataclass(frozen=True, kw_only=True)
class _Products:
    """Sums over images of centered features x [N, P] and y [N, Q], from which linear kernels are computed.

    matrix: x^T y [P, Q]; traces: sum |x|^2 times sum |y|^2; fourth: sum of |x|^2 |y|^2.
    """

    matrix: Tensor
    traces: float
    fourth: float

    @staticmethod
    def of(first: Tensor, second: Tensor) -> _Products:
        means = first.mean(0, dtype=torch.float64), second.mean(0, dtype=torch.float64)
        matrix = torch.zeros(first.shape[1], second.shape[1], dtype=torch.float64, device=first.device)
        sums = torch.zeros(3, dtype=torch.float64, device=first.device)
        for blocks in zip(first.split(_ROWS_PER_BLOCK), second.split(_ROWS_PER_BLOCK), strict=True):
            x, y = (block.double() - mean for block, mean in zip(blocks, means, strict=True))
            matrix.addmm_(x.T, y)
            p, q = x.square().sum(1), y.square().sum(1)
            sums += torch.stack([p.sum(), q.sum(), p @ q])
        return _Products(matrix=matrix, traces=float(sums[0] * sums[1]), fourth=float(sums[2]))

    def biased(self) -> float:
        """Return the Hilbert-Schmidt independence criterion up to a factor that cancels."""
        return float(self.matrix.square().sum())

    def unbiased(self, num: int) -> float:
        """Return its unbiased estimate (Song et al. 2012, Eq. 5) up to a factor that cancels.

        The kernels are centered and have no diagonal: row x sums to -|x|^2, and all entries sum to minus the trace.
        """
        rest = self.traces / ((num - 1) * (num - 2)) - 2 * self.fourth / (num - 2)
        value = self.biased() - self.fourth + rest
        return value if abs(value) > _ROUNDING * self.biased() else 0.0


def _debiased(xy: float, xx: float, yy: float) -> float:
    return 1 - xy / math.sqrt(xx * yy) if xx * yy > 0 else math.nan
