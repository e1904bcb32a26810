"""The copy check: are generated images nearer to the real ones than real images are to each other?

A generator that memorised its training set scores a splendid Frechet distance; this number gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics._neighbours import nearest

DIRECTION = {"copy_ratio": "higher", "copy_fraction": "lower"}
QUANTILE = 0.01


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """Nearest-real distances of samples beside those of real images among themselves (each left out in turn).

    ratio: mean_to_real / mean_among_real; about 1 for fresh images, towards 0 for near copies;
    fraction: share of samples at or below `threshold`, the 1 % quantile among real images; about 0.01 for fresh images;
    distances, indices: [N], of each sample to its nearest real image and which that is.
    """

    mean_to_real: float
    mean_among_real: float
    ratio: float
    threshold: float
    fraction: float
    distances: Tensor
    indices: Tensor


def compute(*, samples: Tensor, reference: Tensor) -> dict[str, float]:
    """`copy_ratio` and `copy_fraction` of samples [N, ...] against a real reference [M, ...]. Errors: DataError."""
    found = copy_check(samples, reference)
    return {"copy_ratio": found.ratio, "copy_fraction": found.fraction}


def copy_check(samples: Tensor, real: Tensor) -> CopyCheck:
    """Compare samples [N, ...] with the real images [M, ...] they might copy: uint8 pixels or float features.

    Cost: N M + M^2 dot products in tiles. Errors: DataError for fewer than 2 real images or identical ones only.
    """
    if len(samples) < 1 or len(real) < 2:
        raise DataError(f"the copy check needs a sample and two real images, got {len(samples)} and {len(real)}")
    if samples.shape[1:] != real.shape[1:]:
        raise DataError(f"samples {tuple(samples.shape[1:])} and real images {tuple(real.shape[1:])} differ in shape")
    among, _ = nearest(real, real, leave_one_out=True)
    distances, indices = nearest(samples, real)
    if not torch.isfinite(distances).all() or not torch.isfinite(among).all():
        raise DataError("features contain NaN or infinity")
    if not among.any():
        raise DataError("every real image has an exact duplicate", hint="remove the duplicates first")
    threshold = among.quantile(QUANTILE)
    return CopyCheck(
        mean_to_real=float(distances.mean()),
        mean_among_real=float(among.mean()),
        ratio=float(distances.mean() / among.mean()),
        threshold=float(threshold),
        fraction=float((distances <= threshold).double().mean()),
        distances=distances,
        indices=indices,
    )
