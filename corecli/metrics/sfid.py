"""Frechet distance of spatial features: the first 7 channels of Inception's mixed_6/conv at all 17 x 17 places.

These are the features of ADM's evaluator (Nash et al. 2021, section 4). The corrected distance is that of `fd`.
"""

from __future__ import annotations

from corecli.metrics.parts.frechet import Gaussian, Moments, compare
from corecli.metrics.parts.metric import Score, Scores

NEEDS = ("sample_spatial", "reference_spatial")
SCORES = {"sfid": "lower", "sfid_corrected": "lower"}
PLACE = 2


def compute(*, sample_spatial: Moments, reference_spatial: Moments | Gaussian) -> Scores:
    """Return the distance and, if every fold holds an image, the corrected one. Errors: DataError."""
    found = compare(sample_spatial, reference_spatial)
    scores = {"sfid": Score(value=found.value)}
    if found.corrected is not None:
        scores["sfid_corrected"] = Score(value=found.corrected, interval=found.interval)
    return scores
