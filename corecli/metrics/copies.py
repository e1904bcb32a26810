"""The copy check: are generated images nearer to the real ones than real images are to each other?

A generator that memorised its training set scores a splendid Frechet distance; these numbers give it away.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.survey import Survey, survey

DIRECTION = {"copy_ratio": "higher", "copy_fraction": "lower", "memorised": "lower", "authenticity": "higher"}
QUANTILE = 0.01
_MEMORISED = 1 / 3


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """Nearest-real distances of samples beside those of real images among themselves (each left out in turn).

    ratio: mean_to_real / mean_among_real; about 1 for fresh images, toward 0 for near copies;
    fraction: share of samples at or below `threshold`, the 1 % quantile among real images; about 0.01 for fresh images;
    memorised: share of samples thrice as near to one real image as to any other (Yoon et al. 2023, section 2); the
    copies of an image that the real set holds twice are not seen;
    authenticity: share of samples farther from their nearest real image than that is from its own nearest (Alaa et al.
    2022, section 4); over a half for fresh images, 0 for copies;
    distances, indices: [N], of each sample to its nearest real image and which that is.
    """

    mean_to_real: float
    mean_among_real: float
    ratio: float
    threshold: float
    fraction: float
    memorised: float
    authenticity: float
    distances: Tensor
    indices: Tensor


def compute(*, samples: Tensor, reference: Tensor) -> dict[str, float]:
    """The four shares and ratios of samples [N, ...] against a real reference [M, ...]. Errors: DataError."""
    found = copy_check(samples, reference)
    return {
        "copy_ratio": found.ratio,
        "copy_fraction": found.fraction,
        "memorised": found.memorised,
        "authenticity": found.authenticity,
    }


def copy_check(samples: Tensor, real: Tensor, *, surveyed: Survey | None = None) -> CopyCheck:
    """Compare samples [N, ...] with the real images [M, ...] they might copy: uint8 pixels or float features.

    surveyed: the nearest neighbors of the two, where they are known already. Cost otherwise: N M + M^2 / 2 dot
    products in tiles. Errors: DataError for fewer than 2 real images or identical ones only.
    """
    if len(samples) < 1 or len(real) < 2:
        raise DataError(f"the copy check needs a sample and two real images, got {len(samples)} and {len(real)}")
    found = surveyed or survey(samples, real, ("nearest",))
    assert found.to_reference is not None
    assert found.among_reference is not None
    among = found.among_reference.distances[:, 0]
    first, second = found.to_reference.distances.T
    indices = found.to_reference.indices[:, 0]
    if not among.any():
        raise DataError("every real image has an exact duplicate", hint="remove the duplicates first")
    threshold = among.quantile(QUANTILE)
    return CopyCheck(
        mean_to_real=float(first.mean()),
        mean_among_real=float(among.mean()),
        ratio=float(first.mean() / among.mean()),
        threshold=float(threshold),
        fraction=float((first <= threshold).double().mean()),
        memorised=float((first < _MEMORISED * second).double().mean()),
        authenticity=float((first > among[indices]).double().mean()),
        distances=first,
        indices=indices,
    )
