"""Nearest neighbors by cosine, from matrix products in tiles: memory is one tile, never N x M."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 4096


def most_similar(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (cosines, indices), both [N, k], of the k most similar references [M, D] to each query [N, D]."""
    cosines, indices = [], []
    for query in queries.split(_TILE):
        query = F.normalize(query.float(), dim=1)
        best, where = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for offset in range(0, len(references), _TILE):
            tile = query @ F.normalize(references[offset : offset + _TILE].float(), dim=1).T
            top, place = tile.topk(min(k, tile.shape[1]), dim=1)
            best, where = torch.cat([best, top], 1), torch.cat([where, place + offset], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, order)
        cosines.append(best)
        indices.append(where)
    return torch.cat(cosines), torch.cat(indices)
