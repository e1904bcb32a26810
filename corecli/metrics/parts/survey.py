"""One visit of all pairs of rows of two sets, for metrics of nearest neighbors, balls and kernels.

The pairs are visited in tiles of a matrix product, so memory is one tile and never N x M. Each pair within a set is
visited once. Rows are centered first, which makes float32 products as exact as float64 products of the original rows.
Distances to neighbors are then computed from differences, so that exact copies are at distance 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.folds import NUM_FOLDS, folds_of

PRECISION_K, DENSITY_K = 3, 5  # as published: Kynkaanniemi et al. 2019, section 3.2; Naeem et al. 2020, section 4
Part = Literal["nearest", "balls", "kernel"]
FEWEST_ROWS = {"nearest": 1, "balls": DENSITY_K + 1, "kernel": 2}  # in each set

_TILE = 2048
_SPARE = 2  # extra candidates, in case float32 rounding in a tile changes the order of the nearest
_MEASURED_ROWS = 128  # at a time, so that they stay in the cache of the processor
_ROUNDING = 2.0**-20  # error of a squared distance in a tile, in units of the largest squared norm


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """Distances [N, k] to the nearest other rows, exact to 1e-6, nearest first, and their indices int64 [N, k]."""

    distances: Tensor
    indices: Tensor


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Nearest neighbors.

    to_reference: of each sample in the reference, 2 (fewer if the reference is smaller); among_reference: of each
    reference row among the others, at least 1; among_samples: likewise of samples, only if balls are computed as well.
    """

    to_reference: Neighbors
    among_reference: Neighbors
    among_samples: Neighbors | None = None


@dataclass(frozen=True, kw_only=True)
class Balls:
    """Which rows lie in which balls; the ball of a row extends to its k-th nearest neighbor in its own set.

    inside_reference: bool [N], samples in any closed ball (k = 3) of a reference row; inside_samples: bool [M], the
    converse; counts: int64 [N], the number of open balls (k = 5) of reference rows that contain each sample; covered:
    bool [M], the open balls that contain a sample.
    """

    inside_reference: Tensor
    inside_samples: Tensor
    counts: Tensor
    covered: Tensor


@dataclass(frozen=True, kw_only=True)
class KernelSums:
    """Sums of (x y / D + 1)^3 over pairs of different rows, by the folds of the two rows, [10, 10].

    num_samples, num_reference: number of rows in each fold, [10]. All are float64.
    """

    samples: Tensor
    reference: Tensor
    between: Tensor
    num_samples: Tensor
    num_reference: Tensor


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The requested parts of a survey; the others are None."""

    nearest: Nearest | None = None
    balls: Balls | None = None
    kernel: KernelSums | None = None


def survey(
    samples: Tensor, reference: Tensor, parts: Collection[Part], *, rows: tuple[Tensor, Tensor] | None = None
) -> Survey:
    """Visit all pairs of samples [N, ...] and reference [M, ...], of any number type and on one device.

    rows: int64 [N] and [M], row numbers that determine the folds of `kernel` (default 0, 1, 2, ...).
    Errors: DataError for too few rows, different dimensions, or values that are not finite.
    """
    _check(samples, reference, parts)
    numbers = rows or (torch.arange(len(samples)), torch.arange(len(reference)))
    center = _mean(reference)
    first, second = (_Points.of(x, center, n) for x, n in zip((samples, reference), numbers, strict=True))
    near, has_balls, kernel = not {"nearest", "balls"}.isdisjoint(parts), "balls" in parts, "kernel" in parts
    among_samples, own = _within(first, DENSITY_K if has_balls else 0, kernel=kernel)
    among_reference, theirs = _within(second, DENSITY_K if has_balls else int(near), kernel=kernel)
    membership = _Membership(first, among_samples, second, among_reference) if has_balls else None
    to_reference, between = _between(first, second, 2 if near else 0, membership, kernel=kernel)
    counts = (first.folds.sum(0), second.folds.sum(0))
    sums = KernelSums(samples=own, reference=theirs, between=between, num_samples=counts[0], num_reference=counts[1])
    nearest = Nearest(
        to_reference=to_reference,
        among_reference=among_reference,
        among_samples=among_samples if has_balls else None,
    )
    return Survey(
        nearest=nearest if near else None,
        balls=membership.balls if membership else None,
        kernel=sums if kernel else None,
    )


def kernel_values(x: Tensor, y: Tensor) -> Tensor:
    """Return (x y / D + 1)^3 for rows x [N, D] and y [M, D], float64 [N, M], from float32 products of centered rows."""
    center = _mean(y)
    first, second = (_Points.of(z, center, torch.arange(len(z))) for z in (x, y))
    whole = slice(0, len(x)), slice(0, len(y))
    return _Tile.of(first, whole[0], second, whole[1]).kernel()


class _Points(NamedTuple):
    """Rows [N, ...], and float64 squared norms of the centered rows and their products with the center."""

    rows: Tensor
    center: Tensor  # float32 [D]
    norms: Tensor
    tilts: Tensor
    folds: Tensor  # float64 [N, 10], one-hot

    @staticmethod
    def of(rows: Tensor, center: Tensor, numbers: Tensor) -> _Points:
        norms, tilts = torch.empty(2, len(rows), dtype=torch.float64, device=rows.device)
        for a in _slices(len(rows)):
            x = (rows[a].flatten(1).float() - center).double()
            norms[a], tilts[a] = x.square().sum(1), x @ center.double()
        if not torch.isfinite(norms).all():
            raise DataError("features contain NaN or infinity")
        folds = F.one_hot(folds_of(numbers), NUM_FOLDS).to(rows.device, torch.float64)
        return _Points(rows, center, norms, tilts, folds)

    def centered(self, a: slice) -> Tensor:
        """Return the rows `a` minus the center, float32 [a, D]."""
        return self.rows[a].flatten(1).float() - self.center


class _Tile(NamedTuple):
    """Float32 products of the centered rows `a` of one set and `b` of another, and the sets."""

    products: Tensor
    first: _Points
    a: slice
    second: _Points
    b: slice

    @staticmethod
    def of(first: _Points, a: slice, second: _Points, b: slice) -> _Tile:
        return _Tile(first.centered(a) @ second.centered(b).T, first, a, second, b)

    def squared(self) -> Tensor:
        """Return squared distances, float32."""
        norms = self.first.norms[self.a].float()[:, None], self.second.norms[self.b].float()
        return self.products.mul(-2).add_(norms[0]).add_(norms[1])

    def kernel(self) -> Tensor:
        """Return the KID kernel of the original rows, float64."""
        center = self.first.center.double()
        tilts = self.first.tilts[self.a][:, None] + center.square().sum(), self.second.tilts[self.b]
        return self.products.double().add_(tilts[0]).add_(tilts[1]).div_(len(center)).add_(1).pow_(3)

    def folded(self, kernel: Tensor) -> Tensor:
        """Return sums of kernel values by the folds of both rows, [10, 10]."""
        return self.first.folds[self.a].T @ kernel @ self.second.folds[self.b]


class _Nearest:
    """The k columns with the lowest values for each row, from tiles in any order."""

    def __init__(self, num: int, k: int, device: torch.device) -> None:
        self._values = torch.full((num, k), torch.inf, device=device)
        self.places = torch.zeros(num, k, dtype=torch.int64, device=device)

    def add(self, values: Tensor, a: slice, b: slice) -> None:
        """Take a tile of values into account."""
        k = self.places.shape[1]
        if not k:
            return
        found, places = values.topk(min(k, values.shape[1]), dim=1, largest=False, sorted=False)
        found, places = torch.cat([self._values[a], found], 1), torch.cat([self.places[a], places + b.start], 1)
        self._values[a], best = found.topk(k, dim=1, largest=False)
        self.places[a] = places.gather(1, best)


class _Membership:
    """Which rows lie in which balls, from tiles of squared distances of samples to the reference."""

    def __init__(self, first: _Points, own: Neighbors, second: _Points, theirs: Neighbors) -> None:
        slack = _ROUNDING * torch.maximum(
            first.norms.max(), second.norms.max()
        )  # the rounding error of equal distances
        own_k, their_k, density_k = (
            found.distances[:, k - 1].square()
            for found, k in ((own, PRECISION_K), (theirs, PRECISION_K), (theirs, DENSITY_K))
        )
        self._of_samples, self._of_reference = (own_k + slack).float(), (their_k + slack).float()
        self._open = (density_k - slack).float()
        inside = [torch.zeros(len(points.rows), dtype=torch.bool, device=slack.device) for points in (first, second)]
        counts = torch.zeros(len(first.rows), dtype=torch.int64, device=slack.device)
        self.balls = Balls(
            inside_reference=inside[0], inside_samples=inside[1], counts=counts, covered=torch.zeros_like(inside[1])
        )

    def add(self, squared: Tensor, a: slice, b: slice) -> None:
        self.balls.inside_reference[a] |= (squared <= self._of_reference[b]).any(1)
        self.balls.inside_samples[b] |= (squared <= self._of_samples[a, None]).any(0)
        held = squared < self._open[b]
        self.balls.counts[a] += held.sum(1)
        self.balls.covered[b] |= held.any(0)


def _within(points: _Points, k: int, *, kernel: bool) -> tuple[Neighbors, Tensor]:
    """Return the k nearest other rows of each row, and sums of the kernel by fold."""
    num, device = len(points.rows), points.rows.device
    k = min(k, num - 1)
    nearest = _Nearest(num, min(k + _SPARE, num - 1) if k else 0, device)
    sums = torch.zeros(NUM_FOLDS, NUM_FOLDS, dtype=torch.float64, device=device)
    for a in _slices(num if k or kernel else 0):
        for b in _slices(num, first=a.start):
            tile = _Tile.of(points, a, points, b)
            if kernel:
                values = tile.kernel()
                part = tile.folded(values.fill_diagonal_(0) if a == b else values)
                sums += part if a == b else part + part.T
            if k:
                squared = tile.squared()
                nearest.add(squared.fill_diagonal_(torch.inf) if a == b else squared, a, b)
                if a != b:
                    nearest.add(squared.T.contiguous(), b, a)
    return _measured(points.rows, points.rows, nearest.places, k), sums


def _between(
    first: _Points, second: _Points, k: int, membership: _Membership | None, *, kernel: bool
) -> tuple[Neighbors, Tensor]:
    """Return the k nearest rows of the second set for each row of the first, and sums of the kernel by fold."""
    num, others = len(first.rows), len(second.rows)
    k = min(k, others)
    nearest = _Nearest(num, min(k + _SPARE, others) if k else 0, first.rows.device)
    sums = torch.zeros(NUM_FOLDS, NUM_FOLDS, dtype=torch.float64, device=first.rows.device)
    for a in _slices(num):
        for b in _slices(others):
            tile = _Tile.of(first, a, second, b)
            if kernel:
                sums += tile.folded(tile.kernel())
            if k:
                squared = tile.squared()
                nearest.add(squared, a, b)
                if membership is not None:
                    membership.add(squared, a, b)
    return _measured(first.rows, second.rows, nearest.places, k), sums


def _measured(queries: Tensor, references: Tensor, places: Tensor, k: int) -> Neighbors:
    """Return the k nearest of the candidates `places` [N, c], by distances computed from differences."""
    found = torch.zeros(places.shape, dtype=torch.float64, device=places.device)
    for start in range(0, len(queries), _MEASURED_ROWS):
        a = slice(start, start + _MEASURED_ROWS)
        x = queries[a].flatten(1).float()
        for column, others in enumerate(places[a].T):
            found[a, column] = torch.linalg.vector_norm(references[others].flatten(1).float() - x, dim=1).double()
    distances, order = found.sort(dim=1, stable=True)
    return Neighbors(distances=distances[:, :k], indices=places.gather(1, order)[:, :k])


def _slices(num: int, *, first: int = 0) -> Iterator[slice]:
    return (slice(start, min(start + _TILE, num)) for start in range(first, num, _TILE))


def _mean(rows: Tensor) -> Tensor:
    """Return the mean, float32 [D]; any center will do, as long as both sets use the same."""
    total = torch.zeros(rows[0].numel(), dtype=torch.float64, device=rows.device)
    for a in _slices(len(rows)):
        total += rows[a].flatten(1).double().sum(0)
    return (total / len(rows)).float()


def _check(samples: Tensor, reference: Tensor, parts: Collection[Part]) -> None:
    fewest = max((FEWEST_ROWS[part] for part in parts), default=1)
    if min(len(samples), len(reference)) < fewest:
        reason = f"{len(samples)} samples and {len(reference)} reference images are too few"
        raise DataError(reason, hint=f"use at least {fewest} of each")
    if samples.shape[1:] != reference.shape[1:]:
        shapes = f"samples {tuple(samples.shape[1:])} and reference images {tuple(reference.shape[1:])}"
        raise DataError(f"{shapes} differ in shape")
