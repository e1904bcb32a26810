"""Density and coverage: precision and recall that single outliers among the real images hardly affect.

Only real images have balls, open and up to the 5th nearest neighbor (Naeem et al. 2020, section 4). Density is the mean
number of balls that contain a sample, divided by 5; coverage is the share of balls that contain a sample. For two sets
from one distribution the expected density is 1 and the expected coverage is about 0.97. A generator that repeats one
image keeps its density and loses its coverage.
"""

from __future__ import annotations

from corecli.metrics.parts.survey import DENSITY_K, Balls

NEEDS = ("balls",)
SCORES = {"density": "higher", "coverage": "higher"}
PLACE = 7
FEWEST = 6


def compute(*, balls: Balls) -> dict[str, float]:
    """Return density, which is at least 0, and coverage, in 0..1."""
    return {
        "density": float(balls.counts.double().mean() / DENSITY_K),
        "coverage": float(balls.covered.double().mean()),
    }
