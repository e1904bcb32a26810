"""Interpolated average precision at 11 recalls, as in the development kit of PASCAL VOC 2007.

Source: Everingham et al. 2010, section 4.2. scikit-learn appends the point (recall 0, precision 1) to its curve, which
makes the term of recall 0 always 1 and raises low scores. No point is appended here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIRECTION = {"map": "higher"}

_POINTS = 11


def compute(*, scores: Tensor, positives: Tensor) -> dict[str, float]:
    """Return `map` of scores [N, C]; positives int [N, C] as in `average_precision_11`. Errors: none."""
    return {"map": mean_average_precision(scores, positives)}


def mean_average_precision(scores: Tensor, positives: Tensor) -> float:
    """Return the mean over classes of the average precision of scores [N, C].

    Classes without positives are left out; NaN if no class has any.
    """
    found = [v for v in map(average_precision_11, scores.unbind(1), positives.unbind(1)) if not math.isnan(v)]
    return sum(found) / len(found) if found else math.nan


def average_precision_11(scores: Tensor, positives: Tensor) -> float:
    """Return the mean, over recalls 0, 0.1, ..., 1, of the highest precision at that recall or above, in 0..1.

    scores: [N], higher is more likely; positives: int [N], 1 positive, 0 negative, -1 ignored (VOC's difficult
    objects). Equal scores keep their order. NaN if there are no positives.
    """
    counted = positives >= 0
    ranked = positives[counted][scores[counted].argsort(descending=True, stable=True)].cpu() > 0
    num_positives = int(ranked.sum())
    if num_positives == 0:
        return math.nan
    hits = ranked.cumsum(0)
    precision = hits.double() / torch.arange(1, len(ranked) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)  # the highest precision from here on
    # Recall reaches t / 10 with hits >= t num_positives / 10, in integers so that 3 of 10 reaches 0.3.
    least = (torch.arange(_POINTS) * num_positives + _POINTS - 2) // (_POINTS - 1)
    return float(envelope[torch.searchsorted(hits, least)].mean())
