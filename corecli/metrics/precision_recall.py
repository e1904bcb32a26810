"""Improved precision and recall: the share of samples that look real, and of real images that could be generated.

A set's manifold is taken to be the union of closed balls around its rows that reach to their 3rd nearest neighbor
(Kynkaanniemi et al. 2019, Eq. 1 and 2). Both fall as sets get smaller: compare them at equal numbers of images.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.metrics.parts.survey import Balls, survey

DIRECTION = {"precision": "higher", "recall": "higher"}


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares in 0..1: precision of the samples inside the reference's manifold, recall of the converse."""

    precision: float
    recall: float


def compute(*, samples: Tensor, reference: Tensor) -> dict[str, float]:
    """`precision` and `recall` of samples [N, D] against reference [M, D]. Errors: DataError below 6 rows."""
    balls = survey(samples, reference, ("balls",)).balls
    assert balls is not None
    return vars(precision_recall(balls))


def precision_recall(balls: Balls) -> PrecisionRecall:
    """The shares of two surveyed sets."""
    return PrecisionRecall(
        precision=float(balls.inside_reference.double().mean()), recall=float(balls.inside_samples.double().mean())
    )
