"""Orthogonal Procrustes distance of two feature spaces on the same images, in 0..2; 0 for equal spaces.

The number does not depend on rotation, shift and scale of the spaces. `parts/similarity.py` has the definition.
"""

from __future__ import annotations

from corecli.metrics.parts.metric import Score, Scores
from corecli.metrics.parts.similarity import Similarities

NEEDS = ("similarities",)
SCORES = {"opd": "lower"}
PLACE = 14


def compute(*, similarities: Similarities) -> Scores:
    """Return the distance with its bootstrap interval."""
    return {"opd": Score(value=similarities.value.opd, interval=similarities.interval("opd"))}
