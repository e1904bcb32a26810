"""Check the labels of a train and a test set, and number their classes."""

from __future__ import annotations

import torch
from torch import Tensor

from corecli.base.errors import DataError


def check_labeled(features: Tensor, labels: Tensor, *, where: str) -> None:
    """Raise DataError if features [N, D] and labels [N] (-1: unknown) cannot be scored."""
    if features.ndim != 2 or len(features) != len(labels):
        shapes = f"features {tuple(features.shape)} and labels {tuple(labels.shape)}"
        raise DataError(f"{shapes} do not match", where=where)
    if len(labels) == 0:
        raise DataError("no images", where=where)
    missing = int((labels < 0).sum())
    if missing:
        hint = "class sub-folders give labels"
        raise DataError(f"{missing} of {len(labels)} images have no label", where=where, hint=hint)
    if not torch.isfinite(features).all():
        raise DataError("features contain NaN or infinity", where=where)


def index_classes(train_labels: Tensor, test_labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (sorted class labels [C], train labels as 0..C-1, test labels as 0..C-1).

    Errors: DataError if train has one class only, or test has a label that train does not have.
    """
    classes, train_index = train_labels.cpu().unique(return_inverse=True)
    test_labels = test_labels.cpu()
    if len(classes) < 2:
        raise DataError(f"all images have the label {int(classes[0])}", where="train", hint="two classes are needed")
    unseen = test_labels[~torch.isin(test_labels, classes)].unique().tolist()
    if unseen:
        shown = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
        raise DataError(f"labels {shown} do not occur in train", where="test")
    return classes, train_index, torch.searchsorted(classes, test_labels)
