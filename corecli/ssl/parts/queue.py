"""The keys of the last batches, first in, first out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.engine.dist import gather_with_gradient


class Queue(nn.Module):
    """K unit rows [K, D], at first random directions; buffers, so that a checkpoint holds them.

    The same on every rank: the keys of the global batch enter in rank order. K need not be a multiple of the batch.
    """

    rows: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))  # the row that is replaced next

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest rows by this rank's keys [B, D], of any length, and those of the others."""
        keys = gather_with_gradient(F.normalize(keys.to(self.rows.dtype), dim=1))
        size, last = len(self.rows), len(keys)
        places = self.oldest + torch.arange(max(0, last - size), last, device=keys.device)  # those that will stay
        self.rows.index_copy_(0, places % size, keys[-size:])
        self.oldest.copy_((self.oldest + last) % size)
