"""Mean and standard deviation of KID over 100 subsets of 1000 images, drawn as torch-fidelity draws them.

Subsets have the size of the smaller set if that has fewer than 1000 images (Binkowski et al. 2018, section 4).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.metrics.parts.survey import kernel_values

NEEDS = ("samples", "reference", "device")
SCORES = {"kid_subsets": "lower", "kid_subsets_std": None}
PLACE = 5
_MOST_WHOLE_ROWS = 4096  # up to here the kernel of all rows is cheaper than the kernels of 100 subsets


def compute(*, samples: Tensor, reference: Tensor, device: torch.device) -> dict[str, float]:
    """Return the distance of samples [N, D] to a reference [M, D]. Errors: DataError for fewer than two images."""
    mean, std = kid_of_subsets(samples.to(device), reference.to(device))
    return {"kid_subsets": mean, "kid_subsets_std": std}


def kid_of_subsets(
    samples: Tensor, reference: Tensor, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Return the mean and the standard deviation of the distance over random subsets.

    Errors: DataError for fewer than two images.
    """
    size = min(subset_size, len(samples), len(reference))
    if size < 2:
        raise DataError(f"no kernel distance between sets of {size} image(s)", hint="use at least 2 images in each")
    draws, device = np.random.RandomState(seed), samples.device
    rows = [
        torch.from_numpy(draws.choice(len(z), size, replace=False))
        for _ in range(num_subsets)
        for z in (samples, reference)
    ]
    mine, theirs = torch.stack(rows[::2]).to(device), torch.stack(rows[1::2]).to(device)
    if max(len(samples), len(reference)) <= _MOST_WHOLE_ROWS:
        values = _of_subsets(samples, reference, mine, theirs)
    else:
        every = torch.arange(size, device=device)[None]
        pairs = zip(mine, theirs, strict=True)
        values = torch.cat([_of_subsets(samples[x], reference[y], every, every) for x, y in pairs])
    return float(values.mean()), float(values.std(correction=0))


def _of_subsets(samples: Tensor, reference: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the distances [S] of subsets, given as rows int64 [S, size] of each set, from the kernels of all rows."""
    size = mine.shape[1]
    w, v = (
        torch.zeros(len(rows), len(z), dtype=torch.float64, device=z.device).scatter_(1, rows, 1.0)
        for rows, z in ((mine, samples), (theirs, reference))
    )
    own, other = (((u @ kernel_values(z, z).fill_diagonal_(0)) * u).sum(1) for u, z in ((w, samples), (v, reference)))
    between = ((w @ kernel_values(samples, reference)) * v).sum(1)
    return (own + other) / (size * (size - 1)) - 2 * between / size**2
