"""Vendi score: the effective number of different images, the exponential of the entropy of a similarity's eigenvalues.

    exp(-sum of l log l), l the eigenvalues of K / n with K the cosines of all pairs      (Friedman & Dieng 2023, Eq. 1)

Features after a ReLU all point the same way, so that hundreds of images count for little more than one; with the mean
direction taken off first (`vendi_centered`, which is no published figure) they are told apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError

DIRECTION = {"vendi": "higher", "vendi_centered": "higher"}
_ROWS_PER_BLOCK = 8192


def compute(*, features: Tensor) -> dict[str, float]:
    """`vendi` and `vendi_centered` of features [N, D]. Errors: DataError."""
    return {"vendi": vendi(features), "vendi_centered": vendi(features, centered=True)}


def vendi(features: Tensor, *, centered: bool = False) -> float:
    """The score of features [N, D], in 1..min(N, D), in float64 and O(N D min(N, D)).

    centered: of features less their mean. Errors: DataError without images or for values that are not finite.
    """
    if len(features) < 1 or not torch.isfinite(features).all():
        raise DataError("no features, or NaN or infinity in them")
    center = features.mean(0, dtype=torch.float64) if centered else features.new_zeros((), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(_similarity(features, center)).clamp(min=0)
    share = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(share).sum().exp())


def _similarity(features: Tensor, center: Tensor) -> Tensor:
    """K [N, N] or, where smaller, the sum of outer products of unit rows [D, D], which has the same eigenvalues."""
    num, dim = features.shape
    if num <= dim:
        units = F.normalize(features.double() - center, dim=1)
        return units @ units.T
    total = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for block in features.split(_ROWS_PER_BLOCK):
        units = F.normalize(block.double() - center, dim=1)
        total.addmm_(units.T, units)
    return total
