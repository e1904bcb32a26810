"""1 minus the linear CKA of two feature spaces on the same images, and its debiased form; 0 for equal spaces.

The numbers do not depend on rotation, shift and scale of the spaces. `parts/similarity.py` has the definition.
"""

from __future__ import annotations

from corecli.metrics.parts.metric import Score, Scores
from corecli.metrics.parts.similarity import Similarities

NEEDS = ("similarities",)
SCORES = {"cka": "lower", "cka_debiased": "lower"}
PLACE = 13


def compute(*, similarities: Similarities) -> Scores:
    """Return both distances with bootstrap intervals."""
    value = similarities.value
    return {
        "cka": Score(value=value.cka, interval=similarities.interval("cka")),
        "cka_debiased": Score(value=value.cka_debiased, interval=similarities.interval("cka_debiased")),
    }
