"""Frechet distance in the feature space of the extractor, with its jackknife correction and interval.

The correction removes the bias due to the number of images; it may be negative when the two sets hardly differ. In the
space of the FID Inception network the distance is called `fid`, else `fd[NAME]` (Heusel et al. 2017, Eq. 6).
"""

from __future__ import annotations

from corecli.metrics.parts.frechet import Gaussian, Moments, compare
from corecli.metrics.parts.metric import Score, Scores

NEEDS = ("sample_moments", "reference_moments", "distance_name")
SCORES = {"fd": "lower", "fd_corrected": "lower"}
PLACE = 0
DEFAULT_FROM = 1


def compute(*, sample_moments: Moments, reference_moments: Moments | Gaussian, distance_name: str) -> Scores:
    """Return the distance and, if every fold holds an image, the corrected one. Errors: DataError."""
    found = compare(sample_moments, reference_moments)
    details = {"metric": distance_name}
    if found.corrected is None:
        details |= dict.fromkeys(("corrected", "standard_error", "interval"))
        return {distance_name: Score(value=found.value, json_name="value", details=details, warnings=found.warnings)}
    details |= {"standard_error": found.standard_error}
    corrected = Score(
        value=found.corrected, interval=found.interval, json_name="corrected", json_interval="interval", details=details
    )
    return {
        distance_name: Score(value=found.value, json_name="value", warnings=found.warnings),
        f"{distance_name}_corrected": corrected,
    }
