"""Alignment and uniformity on the unit sphere: do views of an image meet, and do images fill the space?

Source: Wang & Isola 2020, section 4.1; both are losses, lower is better.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError

DIRECTION = {"alignment": "lower", "uniformity": "lower"}
_TILE = 2048


def compute(*, views: Tensor) -> dict[str, float]:
    """`alignment` of the first two of views [V, N, D] and `uniformity` of the first. Errors: DataError."""
    return {"alignment": alignment(views[0], views[1]), "uniformity": uniformity(views[0])}


def alignment(x: Tensor, y: Tensor) -> float:
    """The mean squared distance of positive pairs, rows of x and y [N, D], after normalizing them; in 0..4."""
    return float((F.normalize(x.double(), dim=1) - F.normalize(y.double(), dim=1)).square().sum(1).mean())


def uniformity(x: Tensor, *, t: float = 2.0) -> float:
    """log of the mean of exp(-t |xi - xj|^2) over pairs i < j of the normalized rows of x [N, D]; in -4t..0.

    Computed in tiles, so memory does not grow with N^2. Errors: DataError for fewer than 2 rows.
    """
    if len(x) < 2:
        raise DataError("uniformity needs at least 2 rows")
    rows = F.normalize(x.double(), dim=1)
    total = 0.0
    for block in rows.split(_TILE):
        total += sum(float((2 * t * (block @ other.T - 1)).exp().sum()) for other in rows.split(_TILE))
    pairs = (total - len(rows)) / (len(rows) * (len(rows) - 1))  # each row meets itself once, with exp(0) = 1
    return math.log(max(pairs, torch.finfo(torch.float64).tiny))
