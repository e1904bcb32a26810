"""Scores of predicted masks, from counts of pixels over a whole set, as in PASCAL VOC and Cityscapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTION = {"miou": "higher", "mean_accuracy": "higher", "pixel_accuracy": "higher"}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Scores of a confusion matrix of pixels, all in 0..1; NaN if no pixel is counted.

    iou: float64 [C], intersection over union of each class, NaN for classes that neither occur nor are predicted;
    miou: mean of the others; mean_accuracy: share of correct pixels of each class, averaged over the classes that
    occur; pixel_accuracy: share of correct pixels.
    """

    iou: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def compute(*, masks: Tensor, predicted_masks: Tensor) -> dict[str, float]:
    """Return the scores of predicted_masks, int [N, H, W]; pixels below 0 in `masks` are ignored. Errors: none."""
    num_classes = 1 + int(torch.maximum(masks.max(), predicted_masks.max()))
    found = overlap(count_pixels(masks, predicted_masks, num_classes))
    return {name: getattr(found, name) for name in DIRECTION}


def count_pixels(masks: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix int64 [C, C]: pixels by class (row) and prediction; classes below 0 are ignored."""
    counted = masks >= 0
    pairs = masks[counted].long() * num_classes + predicted[counted].long()
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def overlap(counts: Tensor) -> Overlap:
    """Return the scores of a confusion matrix of pixels, int64 [C, C]."""
    counts = counts.double()
    found, there, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = found / (there + predicted - found)
    return Overlap(
        iou=iou,
        miou=float(iou.nanmean()),
        mean_accuracy=float((found / there).nanmean()),
        pixel_accuracy=float(found.sum() / counts.sum()),
    )
