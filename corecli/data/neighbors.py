"""Show an image's nearest neighbors in feature space instead of the image itself (IC-GAN, Section 3)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator

_MOST_SIMILARITIES = 1 << 27  # computed at once: half a gigabyte


class Neighbors:
    """Chooses the neighbor that is shown for each image of a batch; has the interface of `members.Members`.

    features: [N, D] for every row of the set, on the device that computes distances. num: number of nearest rows to
    draw from, without the row itself. Errors: DataError if the set has fewer.
    """

    num_entries = 1

    def __init__(self, features: torch.Tensor, num: int, *, seed: int) -> None:
        if not 1 <= num < len(features):
            hint = f"use neighbors={len(features) - 1} or fewer" if len(features) > 1 else None
            raise DataError(f"{num} neighbors per image are too many for {len(features)} images", hint=hint)
        self._nearest, self._seed = nearest(features, num), seed
        self._drawn: tuple[tuple[int, int], np.ndarray] | None = None

    def of(self, images: np.ndarray, epoch: tuple[int, int]) -> np.ndarray:
        """Return int64 [1, B]: a neighbor of each row of `images` [B], drawn anew in epoch (segment, its epoch)."""
        if self._drawn is None or self._drawn[0] != epoch:
            num_rows, num = self._nearest.shape
            self._drawn = epoch, numpy_generator(self._seed, "neighbours", *epoch).integers(num, size=num_rows)
        return self._nearest[images, self._drawn[1][images]].astype(np.int64)[None]


def nearest(features: torch.Tensor, num: int) -> np.ndarray:
    """Return int32 [N, num]: the rows whose features [N, D] have the largest cosine with those of each other row."""
    unit, found = F.normalize(features.float(), dim=1), []
    step = max(1, _MOST_SIMILARITIES // len(unit))
    for start in range(0, len(unit), step):
        similarity = unit[start : start + step] @ unit.T
        similarity.diagonal(start).fill_(-torch.inf)
        found.append(similarity.topk(num, dim=1).indices.int().cpu())
    return torch.cat(found).numpy()
