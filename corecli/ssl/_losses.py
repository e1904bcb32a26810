"""Losses as functions of embeddings, in float32 whatever the precision of the network (float64 stays float64)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.engine.dist import current_rank, gather_with_gradient


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy of two views, each [B, D] of any length (SimCLR, Eq. 1).

    The mean over this rank's 2B anchors; each is told from all 2B * size - 1 other views of the global batch, whose
    mean over ranks is the loss of that batch. Finite for aligned pairs at any temperature, by log-sum-exp.
    """
    with _full_precision(z0):
        z = F.normalize(widened(torch.stack((z0, z1), dim=1)), dim=-1)  # [B, 2, D]: an image's views are neighbours
        anchors, keys = z.flatten(0, 1), gather_with_gradient(z).flatten(0, 1)  # [2B, D], [2B * size, D]
        logits = anchors @ keys.T / temperature
        itself = torch.arange(len(anchors), device=z.device) + current_rank() * len(anchors)
        logits = logits.scatter(1, itself[:, None], float("-inf"))
        return F.cross_entropy(logits, itself ^ 1)


def cosine_distance(z: Tensor, targets: Tensor) -> Tensor:
    """The mean of 1 - cos(z, target) over rows, each [..., D] (CORE, Eq. 7)."""
    with _full_precision(z):
        return (1 - F.cosine_similarity(widened(z), widened(targets), dim=-1)).mean()


def widened(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
