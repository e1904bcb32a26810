"""Losses as functions of embeddings, and the precision they share.

Losses are computed in float32 whatever the precision of the network (float64 stays float64). Softmax losses use
log-sum-exp, so they are finite at any temperature. Each function returns the share of this rank: the mean over ranks
is the loss of the global batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.engine.dist import current_rank, gather_with_gradient

_EPS = 1e-5  # BatchNorm's, as in the code of Barlow Twins


def nt_xent(z0: Tensor, z1: Tensor, *, temperature: float) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy of two views (SimCLR, Eq. 1).

    z0, z1: [B, D] of any length. The loss is the mean over the 2B anchors of this rank; the keys of an anchor are the
    2B * size - 1 other views of the global batch.
    """
    with full_precision(z0):
        z = F.normalize(widened(torch.stack((z0, z1), dim=1)), dim=-1)  # [B, 2, D]: the views of an image are adjacent
        anchors, keys = z.flatten(0, 1), gather_with_gradient(z).flatten(0, 1)  # [2B, D], [2B * size, D]
        logits, itself = _without_itself(anchors @ keys.T / temperature)
        return F.cross_entropy(logits, itself ^ 1)


def info_nce_queue(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float) -> Tensor:
    """Return the cross-entropy of the key of the same image against the keys of a queue (MoCo, Eq. 1).

    q, k: [B, D] of any length; queue: [K, D], unit rows. The loss is the mean over rows. No gradient reaches k and
    queue.
    """
    with full_precision(q):
        q, k = F.normalize(widened(q), dim=-1), F.normalize(widened(k.detach()), dim=-1)
        positive = (q * k).sum(dim=1) / temperature
        negatives = (q @ queue.detach().to(q.dtype).T / temperature).logsumexp(dim=1)
        return -F.logsigmoid(positive - negatives).mean()  # the cross-entropy of [positive, negatives]


def moco_v3(q: Tensor, k: Tensor, *, temperature: float) -> Tensor:
    """Return the contrast of queries with all keys of the global batch, times 2 * temperature (MoCo v3, Eq. 1).

    q, k: [B, D] of any length; the key of the same image is the positive. The loss is the mean over rows. No gradient
    reaches k.
    """
    with full_precision(q):
        q, k = F.normalize(widened(q), dim=-1), F.normalize(widened(k.detach()), dim=-1)
        keys = gather_with_gradient(k)
        same_image = torch.arange(len(q), device=q.device) + current_rank() * len(q)
        return 2 * temperature * F.cross_entropy(q @ keys.T / temperature, same_image)


def byol_distance(p: Tensor, z: Tensor) -> Tensor:
    """Return the mean over rows of |p / |p| - z / |z||^2 = 2 - 2 cos(p, z) (BYOL, Eq. 2).

    p, z: [B, D]. No gradient reaches z. BYOL adds the distances of both directions without averaging them.
    """
    return 2 + 2 * negative_cosine(p, z)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Return the mean over rows of -cos(p, z), each [B, D] (SimSiam, Eq. 1). No gradient reaches z."""
    with full_precision(p):
        return -F.cosine_similarity(widened(p), widened(z.detach()), dim=-1).mean()


def cosine_distance(z: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over rows of 1 - cos(z, target), each [..., D] (CORE, Eq. 7)."""
    with full_precision(z):
        return (1 - F.cosine_similarity(widened(z), widened(targets), dim=-1)).mean()


def barlow_twins(z0: Tensor, z1: Tensor, *, off_diagonal: float) -> Tensor:
    """Return sum_i (c_ii - 1)^2 + off_diagonal * sum_{i != j} c_ij^2 of two views, each [B, D] (Barlow Twins, Eq. 1).

    c is the correlation matrix of the global batch, whose mean and biased variance standardize the features. Each rank
    computes every size-th row of c.
    """
    with full_precision(z0):
        y0, y1 = (_standardized(gather_with_gradient(widened(z))) for z in (z0, z1))  # [B * size, D]
        size = len(y0) // len(z0)
        rows = torch.arange(current_rank(), y0.shape[1], size, device=y0.device)[:, None]
        c = y0[:, rows[:, 0]].T @ y1 / len(y0)  # [D / size, D]
        agreement = (c.gather(1, rows) - 1).square().sum()
        redundancy = c.scatter(1, rows, 0.0).square().sum()
        return size * (agreement + off_diagonal * redundancy)


def widened(x: Tensor) -> Tensor:
    """Return `x` in float32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> torch.autocast:
    """Return a context that disables autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def _without_itself(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [N, N * size] with each anchor's own entry at -inf, and the columns [N] of these entries."""
    itself = torch.arange(len(logits), device=logits.device) + current_rank() * len(logits)
    return logits.scatter(1, itself[:, None], float("-inf")), itself


def _standardized(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * torch.rsqrt(variance + _EPS)
