"""Distance between the mean features of two sets, in standard deviations of the reference."""

from __future__ import annotations

from torch import Tensor

from corecli.metrics.parts.metric import Score, Scores

NEEDS = ("samples", "reference")
USES = ("reference_labels",)
SCORES = {"toy_metric": "lower"}
FEWEST = 2


def compute(*, samples: Tensor, reference: Tensor, reference_labels: Tensor | None = None) -> Scores:
    """Return the distance between samples [N, D] and a reference [M, D]."""
    shift = (samples.double().mean(0) - reference.double().mean(0)) / reference.double().std(0)
    num_classes = None if reference_labels is None else len(reference_labels.unique())
    return {"toy_metric": Score(value=float(shift.norm()), details={"num_classes": num_classes})}
