"""Effective rank (RankMe): the number of directions that features use; it falls when an encoder collapses."""

from __future__ import annotations

import torch
from torch import Tensor

from corecli.base.errors import DataError

_EPSILON = 1e-7
_ROWS_PER_BLOCK = 8192


def effective_rank(features: Tensor) -> float:
    """Return exp of the entropy of the normalized singular values of features [N, D], in 1..min(N, D); not centered.

    Source: Garrido et al. 2023 (RankMe), Eq. 1 and 2. Errors: DataError if they are all zero or not finite.
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
