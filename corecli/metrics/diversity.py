"""Diversity: the mean cosine distance of two images of a class, for samples and reference.

It is averaged over classes, and falls if a generator repeats images (the diversity of feature vectors in MixDiff).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.classes import check_labeled

NEEDS = ("samples", "sample_labels")
USES = ("reference", "reference_labels")
SCORES = {"diversity": "higher", "reference_diversity": None}
PLACE = 11
_ROWS_PER_BLOCK = 8192


def compute(
    *, samples: Tensor, sample_labels: Tensor, reference: Tensor | None = None, reference_labels: Tensor | None = None
) -> dict[str, float]:
    """Return the diversity of samples and, if it has labels, of a reference. Errors: as `diversity`."""
    scores = {"diversity": diversity(samples, sample_labels)}
    if reference is not None and reference_labels is not None:
        scores["reference_diversity"] = diversity(reference, reference_labels)
    return scores


def diversity(features: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of the mean pairwise cosine distance of features [N, D] in a class; in 0..2.

    It takes O(N D): the cosines of all n (n - 1) pairs of unit vectors u sum to |sum of u|^2 - n. Classes with a single
    image have no pairs and are ignored. Errors: DataError without labels or without a class of two images.
    """
    check_labeled(features, labels, where="diversity")
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
        raise DataError("no class has two images", hint="diversity compares the images of a class")
    cosines = (sums.square().sum(1) - own)[paired] / (counts * (counts - 1))[paired]
    return float((1 - cosines).mean())
