"""Contrast with several positives: an anchor is drawn to every key of its label and told from all others."""

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
    """The cross-entropy of an anchor's even share of its positives with its softmax over keys (StableRep, Eq. 1-3).

    anchors: [A, D] of this rank, keys: [K, D] of all, of any length; labels: int64 [A] and [K]. An anchor's positives
    are the keys of its label. `itself`: int64 [A], the key of the anchor's own crop, which is then neither a positive
    nor in the softmax. The mean is over the anchors of all ranks that have a positive; it is 0 when none has.
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
    """Views of one label attract: z [V, B, D] of any length, labels int64 [B] (SupCon, Eq. 2, L_out; StableRep).

    The keys are the same views of the global batch, with gradient; an anchor's own is left out. With two views or more
    all anchors have a positive.
    """
    num_views = len(z)
    anchors = z.transpose(0, 1).flatten(0, 1)  # an image's views are neighbors
    labels = labels.repeat_interleave(num_views)
    keys, key_labels = gather_with_gradient(anchors), gather_with_gradient(labels)
    return multi_positive(anchors, keys, labels, key_labels, temperature=temperature, itself=places(labels))


def places(rows: Tensor) -> Tensor:
    """Where this rank's rows [A, ...] are among those gathered from all: int64 [A]."""
    return torch.arange(len(rows), device=rows.device) + current_rank() * len(rows)


def labels_of(batch: Batch, by: LabelBy) -> Tensor:
    """What makes images of a batch alike, int64 [B]: being the same image, of one group, or of one class."""
    return {"image": places(batch.labels), "group": batch.groups, "class": batch.labels}[by]


def check_label_by(by: str) -> None:
    """Errors: UsageError unless it is a granularity."""
    if by not in get_args(LabelBy):
        raise unknown_name("label-by", by, get_args(LabelBy))
