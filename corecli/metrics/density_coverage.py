"""Density and coverage: precision and recall that a single outlier among the real images cannot move far.

Only real images have balls, open and reaching to their 5th nearest neighbor (Naeem et al. 2020, section 4): density
counts how many hold a sample, relative to the 5 that would be expected, coverage how many hold one at all. For two sets
of one distribution the expected density is 1 and coverage about 0.97; a generator that repeats one image keeps its
density and loses its coverage.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.metrics.parts.survey import DENSITY_K, Balls, survey

DIRECTION = {"density": "higher", "coverage": "higher"}


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """density: 0 and more, 1 for the real distribution; coverage: in 0..1."""

    density: float
    coverage: float


def compute(*, samples: Tensor, reference: Tensor) -> dict[str, float]:
    """`density` and `coverage` of samples [N, D] against reference [M, D]. Errors: DataError below 6 rows."""
    balls = survey(samples, reference, ("balls",)).balls
    assert balls is not None
    return vars(density_coverage(balls))


def density_coverage(balls: Balls) -> DensityCoverage:
    """The figures of two surveyed sets."""
    return DensityCoverage(
        density=float(balls.counts.double().mean() / DENSITY_K), coverage=float(balls.covered.double().mean())
    )
