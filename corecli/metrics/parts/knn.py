"""Weighted k-nearest-neighbor classification by cosine similarity.

Each of the k nearest training rows votes for its class with weight exp(cosine / tau) (Wu et al. 2018, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.metrics.parts.classes import check_labeled, index_classes
from corecli.metrics.parts.scores import Predictions

DIRECTION = {"knn_top1": "higher"}
_TILE = 4096


@dataclass(frozen=True, kw_only=True)
class KnnResult:
    """Accuracies in 0..1; top5 is None below 6 classes."""

    top1: float
    top5: float | None
    k: int
    num_train: int
    num_test: int
    num_classes: int


def compute(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> dict[str, float]:
    """Return `knn_top1` with k = 20 and tau = 0.07. Errors: DataError."""
    return {"knn_top1": knn_classify(train_features, train_labels, test_features, test_labels).top1}


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    tau: float = 0.07,
) -> KnnResult:
    """Classify test_features [M, D] by their neighbors in train_features [N, D]; labels int64, any values >= 0.

    k is at most N. Errors: DataError if labels are missing or of one class only, or occur in test but not in train.
    """
    check_labeled(train_features, train_labels, where="train")
    check_labeled(test_features, test_labels, where="test")
    classes, train_index, test_index = index_classes(train_labels, test_labels)
    (found,) = knn_predict(train_features, train_index, test_features, test_index, ks=[k], tau=tau)
    return KnnResult(
        top1=float((found.ranks == 0).double().mean()),
        top5=float((found.ranks < 5).double().mean()) if len(classes) > 5 else None,
        k=min(k, len(train_features)),
        num_train=len(train_features),
        num_test=len(test_features),
        num_classes=len(classes),
    )


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    ks: Sequence[int],
    tau: float = 0.07,
    among: Tensor | None = None,
) -> list[Predictions]:
    """Return the predictions for each k in `ks`, from one search; labels are int64 in 0..C-1.

    Of classes with equal votes, the first wins. among: bool [C], the only classes that can be predicted.
    """
    cosines, neighbors = most_similar(test_features, train_features, min(max(ks), len(train_features)))
    voted = train_labels.to(neighbors.device)[neighbors]
    weights = ((cosines - cosines[:, :1]) / tau).exp()  # relative to the nearest one, or small tau would overflow
    found = []
    for k in ks:
        votes = weights.new_zeros(len(weights), int(train_labels.max()) + 1)
        votes.scatter_add_(1, voted[:, :k], weights[:, :k])
        if among is not None:
            votes[:, ~among.to(votes.device)] = -1
        ranked = votes.argsort(dim=1, descending=True, stable=True)
        place = ranked.argsort(dim=1).gather(1, test_labels.to(votes.device)[:, None])[:, 0]
        found.append(Predictions(ranks=place.cpu(), predicted=ranked[:, 0].cpu()))
    return found


def most_similar(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (cosines, indices), both [N, k], of the k most similar references [M, D] to each query [N, D].

    Memory is that of a tile, never N x M.
    """
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
