"""Scores of a classification: accuracies, the confusion matrix and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corecli.metrics.parts.fitting import ROWS_PER_BLOCK


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """For each image, the number of classes ranked above the true class, and the predicted class: int64 [N] each."""

    ranks: Tensor
    predicted: Tensor


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Test accuracies in 0..1, averaged over seeds; top5 is None below 6 classes; per_class has classes as keys.

    seed_interval: 95% Student t interval of top1 over seeds, which shows how repeatable the probe is; None for one
    seed; test_interval: 95% Wilson interval of top1 for a test set of this size; confusion: float64 [C, C], images by
    true class (row) and predicted class.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    per_class: dict[int, float]
    seed_interval: tuple[float, float] | None
    test_interval: tuple[float, float]
    top1_by_seed: tuple[float, ...]
    confusion: Tensor
    num_test: int
    num_classes: int


def predict(
    logits: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor, *, among: Tensor | None = None
) -> Predictions:
    """Rank the classes for features [N, D] of true classes `labels` [N] in 0..C-1.

    among: bool [C], the only classes that can be predicted. A class with logit NaN ranks above the true class.
    """
    ranks, predicted = [], []
    for rows in torch.arange(len(labels)).split(ROWS_PER_BLOCK):
        found = logits(features[rows.to(features.device)])
        if among is not None:
            found = found.masked_fill(~among.to(found.device), -math.inf)
        own = found.gather(1, labels[rows.to(labels.device)].to(found.device)[:, None])
        ranks.append((~(found <= own)).sum(1).cpu())
        predicted.append(found.argmax(1).cpu())
    return Predictions(ranks=torch.cat(ranks), predicted=torch.cat(predicted))


def summarize(runs: Sequence[Predictions], labels: Tensor, *, num_classes: int) -> Scores:
    """Return the scores of one or more runs (seeds) on the same images, which have `num_classes` possible classes."""
    labels = labels.cpu()
    hits = torch.stack([run.ranks == 0 for run in runs]).double()
    by_seed = hits.mean(1)
    per_class = {int(c): float(hits[:, labels == c].mean()) for c in labels.unique()}
    return Scores(
        top1=float(by_seed.mean()),
        top5=float(torch.stack([run.ranks < 5 for run in runs]).double().mean()) if num_classes > 5 else None,
        mean_per_class=sum(per_class.values()) / len(per_class),
        per_class=per_class,
        seed_interval=student_interval(by_seed.tolist()),
        test_interval=wilson_interval(float(by_seed.mean()), len(labels)),
        top1_by_seed=tuple(by_seed.tolist()),
        confusion=_confusion(runs, labels),
        num_test=len(labels),
        num_classes=num_classes,
    )


def _confusion(runs: Sequence[Predictions], labels: Tensor) -> Tensor:
    """Return the counts, averaged over runs; a true class that shares the first rank counts as predicted."""
    predicted = torch.stack([torch.where(run.ranks == 0, labels, run.predicted) for run in runs])
    size = int(max(labels.max(), predicted.max())) + 1
    cells = (labels * size + predicted).flatten()
    return torch.bincount(cells, minlength=size * size).view(size, size).double() / len(runs)


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% Student t interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # 0.3 s that only the scores need

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    margin = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean - margin, mean + margin


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """Return the 95% interval of a binomial share in `num` trials (Wilson 1927), which also holds near 0 and 1."""
    from scipy.special import ndtri

    z2 = float(ndtri(0.975)) ** 2
    center = (share + z2 / (2 * num)) / (1 + z2 / num)
    margin = math.sqrt(z2 * (share * (1 - share) / num + z2 / (4 * num**2))) / (1 + z2 / num)
    return center - margin, center + margin
