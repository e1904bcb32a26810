"""Losses that draw a prediction to the representation of another view, without negatives."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from corecli.ssl.parts.losses import full_precision, widened


def byol_distance(p: Tensor, z: Tensor) -> Tensor:
    """The mean over rows of |p / |p| - z / |z||^2 = 2 - 2 cos(p, z), each [B, D] (BYOL, Eq. 2).

    No gradient reaches z. BYOL adds the distances of both directions; it does not average them.
    """
    return 2 + 2 * negative_cosine(p, z)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """The mean over rows of -cos(p, z), each [B, D] (SimSiam, Eq. 1). No gradient reaches z."""
    with full_precision(p):
        return -F.cosine_similarity(widened(p), widened(z.detach()), dim=-1).mean()
