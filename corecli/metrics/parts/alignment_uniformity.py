"""Alignment and uniformity: how near views of an image are, and how evenly images cover the unit sphere.

Source: Wang & Isola 2020, section 4.1; both are losses, lower is better.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError

_TILE = 2048


def alignment(x: Tensor, y: Tensor) -> float:
    """Return the mean squared distance of positive pairs, rows of x and y [N, D], after normalization; in 0..4."""
    return float((F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)).square().sum(1).mean())


def uniformity(x: Tensor, *, t: float = 2.0) -> float:
    """Return log of the mean of exp(-t |xi - xj|^2) over pairs i < j of normalized rows of x [N, D]; in -4t..0.

    It is computed in tiles, so memory does not grow with N^2. Errors: DataError for fewer than 2 rows.
    """
    if len(x) < 2:
        raise DataError("uniformity needs at least 2 rows")
    rows = F.normalize(x.double(), dim=1)
    total = 0.0
    for block in rows.split(_TILE):
        total += sum(float((2 * t * (block @ other.T - 1)).exp().sum()) for other in rows.split(_TILE))
    pairs = (total - len(rows)) / (len(rows) * (len(rows) - 1))  # each row is paired with itself once, and exp(0) = 1
    return math.log(max(pairs, torch.finfo(torch.float64).tiny))
