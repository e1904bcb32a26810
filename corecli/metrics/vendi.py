"""Vendi score: the effective number of different images, for samples and reference, plain and centered.

It is the exponential of the entropy of the eigenvalues of a similarity matrix:

    exp(-sum of l log l), l the eigenvalues of K / n with K the cosines of all pairs      (Friedman & Dieng 2023, Eq. 1)

Features after a ReLU all point in similar directions, so hundreds of images count as little more than one. The centered
score subtracts the mean of the features first; no paper reports it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError

NEEDS = ("samples",)
USES = ("reference",)
SCORES = {
    "vendi": "higher",
    "vendi_centred": "higher",
    "reference_vendi": None,
    "reference_vendi_centred": None,
}
PLACE = 10
_ROWS_PER_BLOCK = 8192


def compute(*, samples: Tensor, reference: Tensor | None = None) -> dict[str, float]:
    """Return the scores of samples [N, D] and, if given, of a reference [M, D]. Errors: DataError."""
    sets = {"vendi": samples} if reference is None else {"vendi": samples, "reference_vendi": reference}
    scores = {}
    for name, features in sets.items():
        scores |= {name: vendi(features), f"{name}_centred": vendi(features, centered=True)}
    return scores


def vendi(features: Tensor, *, centered: bool = False) -> float:
    """Return the score of features [N, D], in 1..min(N, D); float64, in O(N D min(N, D)).

    centered: subtract the mean first. Errors: DataError without images or for values that are not finite.
    """
    if len(features) < 1 or not torch.isfinite(features).all():
        raise DataError("the features are empty or contain NaN or infinity")
    center = features.mean(0, dtype=torch.float64) if centered else features.new_zeros((), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(_similarity(features, center)).clamp(min=0)
    share = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(share).sum().exp())


def _similarity(features: Tensor, center: Tensor) -> Tensor:
    """Return K [N, N] or, if smaller, the sum of outer products of unit rows [D, D]; the eigenvalues are the same."""
    num, dim = features.shape
    if num <= dim:
        units = F.normalize(features.double() - center, dim=1)
        return units @ units.T
    total = torch.zeros(dim, dim, dtype=torch.float64, device=features.device)
    for block in features.split(_ROWS_PER_BLOCK):
        units = F.normalize(block.double() - center, dim=1)
        total.addmm_(units.T, units)
    return total
