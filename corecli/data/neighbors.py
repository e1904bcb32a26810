"""Nearest images in feature space, shown in place of the image itself (IC-GAN, section 3)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator

_MOST_SIMILARITIES = 1 << 27  # computed at once: half a gigabyte


class Neighbors:
    """Chooses, for the images of a batch, which of their nearest is shown; used as `members.Members` is.

    features: [N, D], those of every row of the set, on the device that is to search; num: how many nearest rows,
    itself excluded, are drawn from. Errors: DataError when there are not as many.
    """

    num_entries = 1

    def __init__(self, features: torch.Tensor, num: int, *, seed: int) -> None:
        if not 1 <= num < len(features):
            hint = f"set neighbors={len(features) - 1} or fewer" if len(features) > 1 else None
            raise DataError(f"an image of {len(features)} has no {num} neighbors", hint=hint)
        self._nearest, self._seed = nearest(features, num), seed
        self._drawn: tuple[tuple[int, int], np.ndarray] | None = None

    def of(self, images: np.ndarray, epoch: tuple[int, int]) -> np.ndarray:
        """int64 [1, B]: a neighbor of each row of `images` [B], drawn anew every epoch, (segment, epoch of it)."""
        if self._drawn is None or self._drawn[0] != epoch:
            num_rows, num = self._nearest.shape
            self._drawn = epoch, numpy_generator(self._seed, "neighbours", *epoch).integers(num, size=num_rows)
        return self._nearest[images, self._drawn[1][images]].astype(np.int64)[None]


def nearest(features: torch.Tensor, num: int) -> np.ndarray:
    """int32 [N, num]: the rows whose features [N, D] have the largest cosine with each row's, without itself."""
    unit, found = F.normalize(features.float(), dim=1), []
    step = max(1, _MOST_SIMILARITIES // len(unit))
    for start in range(0, len(unit), step):
        similarity = unit[start : start + step] @ unit.T
        similarity.diagonal(start).fill_(-torch.inf)
        found.append(similarity.topk(num, dim=1).indices.int().cpu())
    return torch.cat(found).numpy()
