"""The Frechet distance of each class on its own: which classes a generator has learned, and which it mixes up.

Classes have few images, which makes their distances large: compare them at equal numbers of images alone.
"""

from __future__ import annotations

from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.frechet import distance, gaussian_of
from corecli.metrics.parts.classes import check_labeled

DIRECTION = {"fd_per_class": "lower"}


def compute(*, samples: Tensor, sample_labels: Tensor, reference: Tensor, reference_labels: Tensor) -> dict[str, float]:
    """`fd_per_class`, the mean over classes. Errors: DataError."""
    found = frechet_per_class(samples, sample_labels, reference, reference_labels)
    return {"fd_per_class": sum(found.values()) / len(found)}


def frechet_per_class(
    samples: Tensor, sample_labels: Tensor, reference: Tensor, reference_labels: Tensor
) -> dict[int, float]:
    """The distance of samples [N, D] to reference [M, D] within each label that has two images or more in both.

    Errors: DataError without such a label, or where an image has none.
    """
    check_labeled(samples, sample_labels, where="samples")
    check_labeled(reference, reference_labels, where="reference")
    found = {}
    for label in sample_labels.unique().tolist():
        mine, theirs = samples[sample_labels == label], reference[reference_labels == label]
        if min(len(mine), len(theirs)) >= 2:
            found[label] = distance(gaussian_of(mine), gaussian_of(theirs))
    if not found:
        raise DataError("no class has two images in both sets", hint="are the classes the same?")
    return found
