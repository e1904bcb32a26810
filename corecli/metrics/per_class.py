"""Frechet distance of each class (in --json), and the mean over classes.

It shows which classes a generator has learned and which it confuses. Classes have few images, which makes their
distances large: compare them only at equal numbers of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.classes import check_labeled
from corecli.metrics.parts.frechet import distance, gaussian_of
from corecli.metrics.parts.metric import Score, Scores

NEEDS = ("samples", "reference", "sample_labels", "reference_labels", "sample_classes", "reference_classes")
SCORES = {"fd_per_class": "lower"}
PLACE = 12


def compute(
    *,
    samples: Tensor,
    reference: Tensor,
    sample_labels: Tensor,
    reference_labels: Tensor,
    sample_classes: Sequence[str],
    reference_classes: Sequence[str],
) -> Scores:
    """Return the mean over classes; the distance of each class is a detail. Errors: as `frechet_per_class`.

    Classes are matched by name if both sets name them, else by label.
    """
    labels = _matched(sample_labels, list(sample_classes), list(reference_classes))
    found = frechet_per_class(samples, labels, reference, reference_labels)
    names = dict(enumerate(reference_classes or sample_classes))
    details = {"per_class": {names.get(label, str(label)): value for label, value in found.items()}}
    return {"fd_per_class": Score(value=sum(found.values()) / len(found), details=details)}


def frechet_per_class(
    samples: Tensor, sample_labels: Tensor, reference: Tensor, reference_labels: Tensor
) -> dict[int, float]:
    """Return the distance of samples [N, D] to a reference [M, D] for each label with at least two images in both.

    Errors: DataError if there is no such label or if an image has no label.
    """
    check_labeled(samples, sample_labels, where="samples")
    check_labeled(reference, reference_labels, where="reference")
    found = {}
    for label in sample_labels.unique().tolist():
        mine, theirs = samples[sample_labels == label], reference[reference_labels == label]
        if min(len(mine), len(theirs)) >= 2:
            found[label] = distance(gaussian_of(mine), gaussian_of(theirs))
    if not found:
        raise DataError("no class has two images in both sets", hint="check that both sets have the same classes")
    return found


def _matched(labels: Tensor, ours: list[str], theirs: list[str]) -> Tensor:
    """Return labels of the samples that mean the same classes as those of the reference."""
    if not (ours and theirs) or ours == theirs:
        return labels
    number = {name: label for label, name in enumerate(theirs)}
    return torch.tensor([number.get(name, len(theirs) + label) for label, name in enumerate(ours)])[labels]
