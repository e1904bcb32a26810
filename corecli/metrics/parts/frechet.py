"""Frechet distance between Gaussians fitted to two sets of features, in float64, with a jackknife error bar.

    d^2 = |mu1 - mu2|^2 + Tr(S1) + Tr(S2) - 2 Tr (S1 S2)^(1/2)            (Heusel et al. 2017, Eq. 6)

With any factors S = F F^T the last trace is the nuclear norm of F1^T F2, so no matrix square root is needed. The factor
is the Cholesky factor of a full-rank covariance; the centered rows themselves for fewer rows than dimensions, which is
exact; and scaled eigenvectors for a singular covariance without rows. Covariances divide by n - 1, and nothing is added
to the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.folds import NUM_FOLDS, folds_of, jackknife

_FLUSH_ROWS = 10_240  # float64 products run at full speed with about 1024 rows per fold, at a third with 64 rows


def frechet_distance(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Return the distance between N(mu1, sigma1) and N(mu2, sigma2); mu [D], sigma [D, D], tensors or arrays."""
    return distance(Gaussian.of(mu1, sigma1), Gaussian.of(mu2, sigma2))


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A mean [D] and a covariance [D, D], or a factor [D, r] of it, float64; `num`: number of rows, if known."""

    mean: Tensor
    covariance: Tensor | None = None
    factor: Tensor | None = None
    num: int | None = None

    @staticmethod
    def of(mean: Tensor, covariance: Tensor, num: int | None = None) -> Gaussian:
        """Return the Gaussian with these statistics, tensors or NumPy arrays of any float type."""
        mean = torch.as_tensor(mean, dtype=torch.float64)
        return Gaussian(mean=mean, covariance=torch.as_tensor(covariance).to(mean), num=num)

    @property
    def dim(self) -> int:
        """Number of dimensions D."""
        return len(self.mean)

    def matrix(self) -> Tensor:
        """Return the covariance [D, D]."""
        if self.covariance is not None:
            return self.covariance
        assert self.factor is not None
        return self.factor @ self.factor.T

    @cached_property
    def root(self) -> Tensor:
        """Factor F [D, r] of the covariance F F^T; r < D if it is singular."""
        if self.factor is not None:
            return self.factor
        assert self.covariance is not None
        lower, failed = torch.linalg.cholesky_ex(self.covariance)
        return _truncated_root(self.covariance, self.num) if failed else lower

    def trace(self) -> float:
        """Return the trace of the covariance."""
        return float(self.covariance.trace() if self.covariance is not None else self.root.square().sum())


def gaussian_of(features: Tensor) -> Gaussian:
    """Return the Gaussian of features [N, D], exact for N <= D too. Errors: DataError for one row, NaN or infinity."""
    rows = torch.as_tensor(features).double()
    _check(len(rows), rows)
    mean = rows.mean(0)
    centered = (rows - mean).T / (len(rows) - 1) ** 0.5
    if len(rows) <= rows.shape[1]:
        return Gaussian(mean=mean, factor=centered, num=len(rows))
    return Gaussian(mean=mean, covariance=centered @ centered.T, num=len(rows))


def distance(a: Gaussian, b: Gaussian) -> float:
    """Return the Frechet distance of two Gaussians; at least 0. Errors: DataError if their dimensions differ."""
    if a.dim != b.dim:
        raise DataError(f"features with {a.dim} and {b.dim} dimensions cannot be compared")
    shift = float((a.mean - b.mean).square().sum())
    return max(0.0, shift + a.trace() + b.trace() - 2 * _trace_of_root(a, b))


def as_gaussian(law: Moments | Gaussian) -> Gaussian:
    """Return the Gaussian of all rows of `Moments`; a `Gaussian` as it is. Errors: DataError."""
    return law if isinstance(law, Gaussian) else law.gaussian()


def _trace_of_root(a: Gaussian, b: Gaussian) -> float:
    """Return Tr (S_a S_b)^(1/2)."""
    root_a, root_b = a.root, b.root
    if root_a.shape[1] == root_b.shape[1] == a.dim:  # three times as fast as the singular values below
        return float(torch.linalg.eigvalsh(root_a.T @ b.matrix() @ root_a).clamp(min=0).sqrt().sum())
    return float(torch.linalg.svdvals(root_a.T @ root_b).sum())


def _truncated_root(covariance: Tensor, num: int | None) -> Tensor:
    """Return a factor of a singular covariance without its null space, since the root would magnify rounding noise."""
    values, vectors = torch.linalg.eigh(covariance)
    keep = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    if num is not None:
        keep[: max(0, len(values) - (num - 1))] = False
    return vectors[:, keep] * values[keep].sqrt()


class Moments:
    """Streaming n, sum x and sum x x^T of feature rows in float64, in ten folds for the jackknife.

    `update` adds a batch; `merge` adds another object; summing `tensors()` over processes in place merges processes.
    Up to D rows in a single object are kept as they are, so that the distance is exact. Memory: 40 D^2 bytes.
    """

    def __init__(self, dim: int, *, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self._count = torch.zeros(NUM_FOLDS, dtype=torch.float64, device=device)
        self._total = torch.zeros(NUM_FOLDS, dim, dtype=torch.float64, device=device)
        self._products = torch.zeros(NUM_FOLDS, 0, dtype=torch.float64, device=device)  # packed: upper triangle by rows
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._arrived = 0

    def update(self, features: Tensor, rows: Tensor | None = None) -> None:
        """Add features [B, D].

        rows: int64 [B], global numbers of the rows, which determine the folds (default: order of arrival). They make
        the folds independent of batches and processes, and rows with the same number (a group) share a fold.
        Errors: DataError for another number of dimensions.
        """
        if features.shape[1] != self.dim:
            raise DataError(f"features have {features.shape[1]} dimensions instead of {self.dim}")
        if rows is None:
            rows = torch.arange(self._arrived, self._arrived + len(features))
        self._arrived += len(features)
        folds = folds_of(rows)
        self._pending.append((features.detach().to(self._total.device, copy=True), folds.to(self._total.device)))
        if sum(len(x) for x, _ in self._pending) >= _FLUSH_ROWS:
            self._flush()

    def merge(self, other: Moments) -> None:
        """Add the rows of another object."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs.to(mine)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums over rows, float64: counts [10], totals [10, D], packed products [10, D (D + 1) / 2].

        These are the state itself: after they are summed over processes in place, this object describes all rows.
        """
        self._flush()
        return self._count, self._total, self._products

    @property
    def num(self) -> int:
        """Number of rows."""
        return int(self._count.sum()) + sum(len(x) for x, _ in self._pending)

    @property
    def num_folds_filled(self) -> int:
        """Number of folds that hold a row."""
        filled = self._count > 0
        for _, folds in self._pending:
            filled[folds] = True
        return int(filled.sum())

    def gaussian(self, *, without_fold: int | None = None) -> Gaussian:
        """Return the Gaussian of all rows, or of all but one fold. Errors: DataError for fewer than two rows or NaN."""
        if self._pending and self._count.sum() == 0 and self.num <= self.dim:
            features, folds = self._take_pending()
            return gaussian_of(features if without_fold is None else features[folds != without_fold])
        count, total, products = (_sum_folds(sums, without_fold) for sums in self.tensors())
        num = int(count)
        _check(num, total)
        mean = total / num
        covariance = _unpack(products, self.dim).addr_(mean, mean, alpha=-num).div_(num - 1)
        return Gaussian(mean=mean, covariance=covariance, num=num)

    def _take_pending(self) -> tuple[Tensor, Tensor]:
        self._pending = [(torch.cat([x for x, _ in self._pending]), torch.cat([f for _, f in self._pending]))]
        return self._pending[0]

    def _flush(self) -> None:
        if not self._products.shape[1]:
            self._products = self._products.new_zeros(NUM_FOLDS, self.dim * (self.dim + 1) // 2)
        if not self._pending:
            return
        features, folds = self._take_pending()
        upper = torch.triu_indices(self.dim, self.dim, device=features.device)
        flat = upper[0] * self.dim + upper[1]
        for fold in range(NUM_FOLDS):
            block = features[folds == fold].double()
            self._count[fold] += len(block)
            self._total[fold] += block.sum(0)
            self._products[fold] += (block.T @ block).view(-1)[flat]
        self._pending = []


@dataclass(frozen=True, kw_only=True)
class FrechetResult:
    """A distance and, if all ten folds hold rows, its jackknife correction.

    corrected: estimate of the distance between the distributions, without the bias due to the number of images; it may
    be negative if they are equal; standard_error, interval: of `corrected`, the interval with 95% coverage (Student t,
    9 degrees of freedom).
    """

    value: float
    corrected: float | None
    standard_error: float | None
    interval: tuple[float, float] | None
    num_samples: int
    num_reference: int | None
    dim: int
    warnings: tuple[str, ...]


def compare(samples: Moments, reference: Moments | Gaussian, *, error_bar: bool = True) -> FrechetResult:
    """Return the distance of samples to a reference, with an error bar from the ten-fold jackknife.

    The jackknife leaves the same fold out of both sets if the reference is Moments; a Gaussian is taken as exact. The
    interval covers the choice of images, not the choice of the generator's training seed. Errors: DataError.
    """
    fixed = as_gaussian(reference)
    mine = samples.gaussian()
    value = distance(mine, fixed)
    corrected = error = interval = None
    if error_bar and _has_folds(samples, reference):
        left_out = [_without_fold(samples, reference, fold) for fold in range(NUM_FOLDS)]
        corrected, error, interval = jackknife(value, left_out)
    return FrechetResult(
        value=value,
        corrected=corrected,
        standard_error=error,
        interval=interval,
        num_samples=samples.num,
        num_reference=fixed.num,
        dim=mine.dim,
        warnings=tuple(_shortfalls({"samples": samples.num, "reference images": fixed.num}, mine.dim)),
    )


def _without_fold(samples: Moments, reference: Moments | Gaussian, fold: int) -> float:
    fixed = reference if isinstance(reference, Gaussian) else reference.gaussian(without_fold=fold)
    return distance(samples.gaussian(without_fold=fold), fixed)


def _has_folds(*sets: Moments | Gaussian) -> bool:
    return all(s.num_folds_filled == NUM_FOLDS for s in sets if isinstance(s, Moments))


def _shortfalls(counts: dict[str, int | None], dim: int) -> list[str]:
    return [
        f"{num} {name} for {dim} dimensions: the covariance is singular and the distance biased; use at least {dim + 1}"
        for name, num in counts.items()
        if num is not None and num <= dim
    ]


def _sum_folds(sums: Tensor, left_out: int | None) -> Tensor:
    return sums.sum(0) if left_out is None else sums.sum(0) - sums[left_out]


def _unpack(packed: Tensor, dim: int) -> Tensor:
    square = packed.new_zeros(dim, dim)
    upper = torch.triu_indices(dim, dim, device=packed.device)
    square[upper[0], upper[1]] = packed
    return square.triu(1).T + square


def _check(num: int, values: Tensor) -> None:
    if num < 2:
        raise DataError(f"no covariance from {num} image(s)", hint="a Frechet distance needs at least 2 in each set")
    if not torch.isfinite(values).all():
        raise DataError("features contain NaN or infinity")
