"""Improved precision and recall: the share of samples that look real, and of real images that are covered by samples.

The support of a set is the union of closed balls around its rows, each up to the 3rd nearest neighbor (Kynkaanniemi et
al. 2019, Eq. 1 and 2). Both numbers depend on the sizes of the sets: compare them at equal numbers of images.
"""

from __future__ import annotations

from corecli.metrics.parts.survey import Balls

NEEDS = ("balls",)
SCORES = {"precision": "higher", "recall": "higher"}
PLACE = 6
FEWEST = 6


def compute(*, balls: Balls) -> dict[str, float]:
    """Return precision, the share of samples in the support of the reference, and recall, the converse; in 0..1."""
    return {
        "precision": float(balls.inside_reference.double().mean()),
        "recall": float(balls.inside_samples.double().mean()),
    }
