"""Prototypes: directions that embeddings are told by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.ssl.parts.losses import full_precision, widened


class Prototypes(nn.Module):
    """K directions: embeddings [..., D] of any length -> their cosines [..., K], in float32 or wider.

    A linear layer with weight normalization, whose scales are fixed at 1 unless they are learned.
    """

    def __init__(self, num: int, dim: int, *, learned_scale: bool = False) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, num, bias=False).weight
        self.scale = nn.Parameter(torch.ones(num)) if learned_scale else None

    def forward(self, z: Tensor, *, frozen: bool = False) -> Tensor:
        weight = self.weight.detach() if frozen else self.weight
        with full_precision(z):
            directions = F.normalize(weight, dim=-1)
            if self.scale is not None:
                directions = directions * self.scale[:, None]
            return F.linear(F.normalize(widened(z), dim=-1), directions)
