"""Contrast with several positives: the keys with the label of an anchor are its positives, all others negatives."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import unknown_name
from corecli.engine.dist import current_rank, gather_with_gradient, mean_over_ranks
from corecli.ssl.parts.losses import full_precision, widened
from corecli.ssl.parts.method import Batch

LabelBy = Literal["image", "group", "class"]


def multi_positive(
    anchors: Tensor,
    keys: Tensor,
    labels: Tensor,
    key_labels: Tensor,
    *,
    temperature: float,
    itself: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of anchors with the uniform distribution over their positives (StableRep, Eq. 1-3).

    anchors: [A, D] of this rank; keys: [K, D] of all ranks, both of any length; labels, key_labels: int64 [A] and [K].
    The positives of an anchor are the keys with its label. itself: int64 [A], the key of the anchor's own crop, which
    is left out of the positives and of the softmax. The loss is the mean over the anchors of all ranks that have a
    positive, and 0 when none has one.
    """
    with full_precision(anchors):
        anchors, keys = F.normalize(widened(anchors), dim=-1), F.normalize(widened(keys), dim=-1)
        logits, positive = anchors @ keys.T / temperature, labels[:, None] == key_labels
        if itself is not None:
            logits = logits.scatter(1, itself[:, None], float("-inf"))
            positive = positive.scatter(1, itself[:, None], False)
        log_p = logits.log_softmax(dim=1).masked_fill(~positive, 0)
        num_positives = positive.sum(dim=1)
        total = -(log_p.sum(dim=1) / num_positives.clamp(min=1)).sum()
        num_anchors = mean_over_ranks((num_positives > 0).sum().to(total.dtype))
        return total / torch.where(num_anchors > 0, num_anchors, 1)


def supervised_contrastive(z: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Return the contrast in which views with equal labels are positives (SupCon, Eq. 2, L_out; StableRep).

    z: [V, B, D] of any length; labels: int64 [B]. The keys are the views of the global batch, with gradient, without
    the anchor itself. With two views or more, every anchor has a positive.
    """
    num_views = len(z)
    anchors = z.transpose(0, 1).flatten(0, 1)  # the views of an image are adjacent
    labels = labels.repeat_interleave(num_views)
    keys, key_labels = gather_with_gradient(anchors), gather_with_gradient(labels)
    return multi_positive(anchors, keys, labels, key_labels, temperature=temperature, itself=places(labels))


def places(rows: Tensor) -> Tensor:
    """Return the positions of this rank's rows [A, ...] among the rows gathered from all ranks: int64 [A]."""
    return torch.arange(len(rows), device=rows.device) + current_rank() * len(rows)


def labels_of(batch: Batch, by: LabelBy) -> Tensor:
    """Return int64 [B] that is equal for images that attract: the same image, or images of one group or one class."""
    return {"image": places(batch.labels), "group": batch.groups, "class": batch.labels}[by]


def check_label_by(by: str) -> None:
    """Raise UsageError unless it is image, group or class."""
    if by not in get_args(LabelBy):
        raise unknown_name("label-by", by, get_args(LabelBy))
