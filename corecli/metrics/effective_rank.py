"""Effective rank (RankMe): how many directions features really use; collapse shows as a fall during training."""

from __future__ import annotations

import torch
from torch import Tensor

from corecli.base.errors import DataError

DIRECTION = {"effective_rank": "higher"}
_EPSILON = 1e-7
_ROWS_PER_BLOCK = 8192


def compute(*, features: Tensor) -> dict[str, float]:
    """`effective_rank` of features [N, D]. Errors: DataError."""
    return {"effective_rank": effective_rank(features)}


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalized singular values of features [N, D], in 1..min(N, D); not centered.

    Source: Garrido et al. 2023 (RankMe), Eq. 1 and 2. Errors: DataError when non-finite or all zero.
    """
    features = features.detach()
    if not torch.isfinite(features).all() or not features.any():
        raise DataError("features are all zero or contain NaN or infinity")
    tall = features if len(features) > features.shape[1] else features.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=features.device)
    for block in tall.split(_ROWS_PER_BLOCK):
        gram.addmm_(block.double().T, block.double())
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum() + _EPSILON
    return float((-(share * share.log()).sum()).exp())
