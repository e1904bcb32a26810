"""How well masks are predicted, from the counts of pixels over a whole set, as PASCAL VOC and Cityscapes do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIRECTION = {"miou": "higher", "mean_accuracy": "higher", "pixel_accuracy": "higher"}


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Scores of a confusion matrix, all in 0..1.

    iou: float64 [C], of each class its intersection over its union, NaN where it is neither there nor predicted;
    miou: its mean over the others; mean_accuracy: the share of a class's pixels that are found, over the classes that
    are there; pixel_accuracy: the share of all pixels. NaN where nothing is counted.
    """

    iou: Tensor
    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def compute(*, masks: Tensor, predicted_masks: Tensor) -> dict[str, float]:
    """The scores of predicted_masks, int [N, H, W], for masks, of which pixels below 0 do not count. Errors: none."""
    num_classes = 1 + int(torch.maximum(masks.max(), predicted_masks.max()))
    found = overlap(count_pixels(masks, predicted_masks, num_classes))
    return {name: getattr(found, name) for name in DIRECTION}


def count_pixels(masks: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """The confusion matrix, int64 [C, C]: pixels by their class (row) and the predicted one; below 0 is not counted."""
    counted = masks >= 0
    pairs = masks[counted].long() * num_classes + predicted[counted].long()
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def overlap(counts: Tensor) -> Overlap:
    """The scores of a confusion matrix of pixels, int64 [C, C]."""
    counts = counts.double()
    found, there, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = found / (there + predicted - found)
    return Overlap(
        iou=iou,
        miou=float(iou.nanmean()),
        mean_accuracy=float((found / there).nanmean()),
        pixel_accuracy=float(found.sum() / counts.sum()),
    )
