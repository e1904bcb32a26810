"""How alike two feature spaces are on the same images, whatever their rotation and scale.

Distances, 0 for spaces that differ by rotation, shift and scale alone: `cka` is 1 minus the linear CKA, in 0..1;
`cka_debiased` the same from unbiased estimates, near 1 for independent features; `opd` the orthogonal Procrustes
distance, in 0..2. Only products of features with features are made (P x Q), never of images with images.

Few images make the first and the last too small, as any two clouds of few points in many dimensions can be rotated
onto each other: independent Gaussians of 512 and 256 dimensions are at cka 0.42, 0.74, 0.92 and opd 0.39, 1.09, 1.53
for 256, 1000 and 4000 images, while cka_debiased is within 0.01 of 1.

Sources: CKA: Kornblith et al. 2019, section 3; its debiased form: Nguyen et al. 2021, Eq. 3; OPD: Ding et al. 2021,
section 2, in the nuclear-norm form, which also holds where the spaces have different dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator

DIRECTION = {"cka": "lower", "cka_debiased": "lower", "opd": "lower"}
_ROWS_PER_BLOCK = 8192
_FEWEST = 4  # images; the unbiased estimate is made of differences of differences
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Distances of two feature spaces; cka_debiased is nan where all images of one are equally far from each other."""

    cka: float
    cka_debiased: float
    opd: float


def compute(*, first: Tensor, second: Tensor) -> dict[str, float]:
    """`cka`, `cka_debiased` and `opd` of features [N, P] and [N, Q] of the same images. Errors: DataError."""
    return vars(similarity(first, second))


def similarity(first: Tensor, second: Tensor) -> Similarity:
    """The distances between features [N, P] and [N, Q] whose rows are of the same images, in float64.

    Errors: DataError for fewer than 4 images, other numbers of rows, or features that are all alike or not finite.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise DataError(f"features {tuple(first.shape)} and {tuple(second.shape)} are not of the same images")
    num = len(first)
    if num < _FEWEST:
        raise DataError(f"{num} images are too few to compare two spaces on", hint=f"at least {_FEWEST} are needed")
    xy, xx, yy = (_Products.of(*pair) for pair in ((first, second), (first, first), (second, second)))
    if not all(0 < own.traces < math.inf for own in (xx, yy)):
        raise DataError("features are all alike, or contain NaN or infinity")
    nuclear = float(torch.linalg.svdvals(xy.matrix).sum())
    return Similarity(
        cka=max(0.0, 1 - xy.biased() / math.sqrt(xx.biased() * yy.biased())),
        cka_debiased=_debiased(*(products.unbiased(num) for products in (xy, xx, yy))),
        opd=max(0.0, 2 - 2 * nuclear / math.sqrt(xy.traces)),
    )


def bootstrap(first: Tensor, second: Tensor, *, num_resamples: int, seed: int) -> Iterator[Similarity]:
    """The distances on resamples of the images, one after another: as many, drawn with replacement.

    An image that comes up twice is as near to itself in both spaces as can be, so resamples have lower distances than
    the images they are drawn from, and so has an interval made of them. Errors: as `similarity`.
    """
    for index in range(num_resamples):
        rows = torch.from_numpy(numpy_generator(seed, "bootstrap", index).integers(0, len(first), len(first)))
        yield similarity(first[rows], second[rows])


@dataclass(frozen=True, kw_only=True)
class _Products:
    """Sums over images of centered features x [N, P] and y [N, Q], all that linear kernels of them need.

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
        """The Hilbert-Schmidt independence criterion, but for a factor that cancels."""
        return float(self.matrix.square().sum())

    def unbiased(self, num: int) -> float:
        """Its unbiased estimate (Song et al. 2012, Eq. 5), but for a factor that cancels.

        Of centered kernels without their diagonals: the rows sum to -|x|^2, and so all to minus the trace.
        """
        rest = self.traces / ((num - 1) * (num - 2)) - 2 * self.fourth / (num - 2)
        value = self.biased() - self.fourth + rest
        return value if abs(value) > _ROUNDING * self.biased() else 0.0


def _debiased(xy: float, xx: float, yy: float) -> float:
    return 1 - xy / math.sqrt(xx * yy) if xx * yy > 0 else math.nan
