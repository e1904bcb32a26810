"""Diversity: how far apart the images of a class are, for telling apart real, generated and repeated ones.

The mean cosine distance of all pairs of a class, averaged over classes (MixDiff's diversity of feature vectors).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.classes import check_labeled

DIRECTION = {"diversity": "higher"}
_ROWS_PER_BLOCK = 8192


def compute(*, features: Tensor, labels: Tensor) -> dict[str, float]:
    """`diversity` of features [N, D] with labels [N]. Errors: DataError."""
    return {"diversity": diversity(features, labels)}


def diversity(features: Tensor, labels: Tensor, *, where: str = "features") -> float:
    """The mean over classes of the mean pairwise cosine distance of a class's rows of features [N, D]; in 0..2.

    In O(N D): the cosines of all n (n - 1) pairs of unit vectors u sum to |sum of u|^2 - n. Classes of a single image
    have no pairs and are left out. Errors: DataError about `where` without labels or without a class of two images.
    """
    check_labeled(features, labels, where=where)
    classes, index = labels.cpu().unique(return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64)
    own, counts = torch.zeros(2, len(classes), dtype=torch.float64)
    for block, rows in zip(features.cpu().split(_ROWS_PER_BLOCK), index.split(_ROWS_PER_BLOCK), strict=True):
        units = F.normalize(block.double(), dim=1)
        sums.index_add_(0, rows, units)
        own.index_add_(0, rows, units.square().sum(1))
        counts.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
    paired = counts > 1
    if not paired.any():
        raise DataError("no class has two images", where=where, hint="the distance of a pair is what is measured")
    cosines = (sums.square().sum(1) - own)[paired] / (counts * (counts - 1))[paired]
    return float((1 - cosines).mean())
