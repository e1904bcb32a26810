"""Contrastive losses as functions of embeddings, and what all losses of this folder share.

Losses are computed in float32 whatever the precision of the network (float64 stays float64), by log-sum-exp, so they
are finite at any temperature. Each is this rank's share: its mean over ranks is the loss of the global batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.engine.dist import current_rank, gather_with_gradient


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """The normalized temperature-scaled cross-entropy of two views, each [B, D] of any length (SimCLR, Eq. 1).

    The mean over this rank's 2B anchors; each is told from all 2B * size - 1 other views of the global batch.
    """
    with full_precision(z0):
        z = F.normalize(widened(torch.stack((z0, z1), dim=1)), dim=-1)  # [B, 2, D]: an image's views are neighbors
        anchors, keys = z.flatten(0, 1), gather_with_gradient(z).flatten(0, 1)  # [2B, D], [2B * size, D]
        logits, itself = _without_itself(anchors @ keys.T / temperature)
        return F.cross_entropy(logits, itself ^ 1)


def info_nce_queue(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Tell the key of the same image from those of a queue (MoCo, Eq. 1): the mean over rows.

    q, k: [B, D] of any length; queue: [K, D], unit rows. No gradient reaches k and queue.
    """
    with full_precision(q):
        q, k = F.normalize(widened(q), dim=-1), F.normalize(widened(k.detach()), dim=-1)
        positive = (q * k).sum(dim=1) / temperature
        negatives = (q @ queue.detach().to(q.dtype).T / temperature).logsumexp(dim=1)
        return -F.logsigmoid(positive - negatives).mean()  # the cross-entropy of [positive, negatives]


def moco_v3(q: Tensor, k: Tensor, *, temperature: float) -> Tensor:
    """Tell the key of the same image from all others of the global batch, times 2 * temperature (MoCo v3, Eq. 1).

    q, k: [B, D] of any length; the mean over rows. No gradient reaches k.
    """
    with full_precision(q):
        q, k = F.normalize(widened(q), dim=-1), F.normalize(widened(k.detach()), dim=-1)
        keys = gather_with_gradient(k)
        same_image = torch.arange(len(q), device=q.device) + current_rank() * len(q)
        return 2 * temperature * F.cross_entropy(q @ keys.T / temperature, same_image)


def cosine_distance(z: Tensor, targets: Tensor) -> Tensor:
    """The mean of 1 - cos(z, target) over rows, each [..., D] (CORE, Eq. 7)."""
    with full_precision(z):
        return (1 - F.cosine_similarity(widened(z), widened(targets), dim=-1)).mean()


def widened(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which operations on the device of `x` keep its precision."""
    return torch.autocast(x.device.type, enabled=False)


def _without_itself(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, N * size] of this rank's anchors with those of themselves at -inf; the columns of these, [N]."""
    itself = torch.arange(len(logits), device=logits.device) + current_rank() * len(logits)
    return logits.scatter(1, itself[:, None], float("-inf")), itself
