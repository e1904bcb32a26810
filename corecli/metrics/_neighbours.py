"""Nearest neighbours by blocked matrix products: memory is one tile, never N x M."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 4096
_SPARE = 4  # extra candidates, so that float32 rounding of the tile cannot hide the true nearest


def most_similar(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k references [M, D] of highest cosine to each query [N, D]: (cosines, indices), both [N, k], best first."""
    return _search(queries, references, k, "cosine", leave_one_out=False)


def nearest(queries: Tensor, references: Tensor, *, leave_one_out: bool = False) -> tuple[Tensor, Tensor]:
    """The Euclidean distance to the nearest reference and its index, both [N], for queries [N, ...] of any type.

    leave_one_out: queries are the references themselves, and none is its own neighbour. Distances are recomputed in
    float64 from the differences, so that exact copies are at distance 0.
    """
    spare = min(1 + _SPARE, len(references) - int(leave_one_out))
    _, found = _search(queries, references, spare, "euclidean", leave_one_out=leave_one_out)
    exact = torch.cat([_exact(q, references, i) for q, i in zip(queries.split(_TILE), found.split(_TILE), strict=True)])
    distance, place = exact.min(1)
    return distance, found.gather(1, place[:, None])[:, 0]


def _search(
    queries: Tensor, references: Tensor, k: int, metric: Literal["cosine", "euclidean"], *, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    centre = _mean(references) if metric == "euclidean" else None  # less cancellation in |q|^2 - 2 q r + |r|^2
    scores, indices = [], []
    for start in range(0, len(queries), _TILE):
        query = _rows(queries[start : start + _TILE], centre)
        best, where = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for offset in range(0, len(references), _TILE):
            tile = _score(query, _rows(references[offset : offset + _TILE], centre), metric)
            if leave_one_out and offset == start:
                tile.fill_diagonal_(-torch.inf)
            top, place = tile.topk(min(k, tile.shape[1]), dim=1)
            best, where = torch.cat([best, top], 1), torch.cat([where, place + offset], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, order)
        scores.append(best)
        indices.append(where)
    return torch.cat(scores), torch.cat(indices)


def _score(query: Tensor, reference: Tensor, metric: str) -> Tensor:
    """Higher is nearer: the cosine, or minus half the squared distance but for the query's own norm."""
    if metric == "cosine":
        return F.normalize(query, dim=1) @ F.normalize(reference, dim=1).T
    return torch.addmm(-0.5 * reference.square().sum(1), query, reference.T)


def _exact(queries: Tensor, references: Tensor, indices: Tensor) -> Tensor:
    query = queries.flatten(1).double()
    columns = [(query - references[column].flatten(1).double()).square().sum(1).sqrt() for column in indices.T]
    return torch.stack(columns, dim=1)


def _rows(block: Tensor, centre: Tensor | None) -> Tensor:
    rows = block.flatten(1).float()
    return rows if centre is None else rows - centre


def _mean(references: Tensor) -> Tensor:
    total = torch.zeros(references[0].numel(), dtype=torch.float64, device=references.device)
    for block in references.split(_TILE):
        total += block.flatten(1).double().sum(0)
    return (total / len(references)).float()
