"""Inception score: how confident the classifier is on each sample and how varied its answers are over all of them.

    IS = exp(mean over x of KL(p(y|x) || p(y)))                         (Salimans et al. 2016, section 4)

The published figures take the 1008 logits of the FID Inception network without their bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError

DIRECTION = {"is": "higher"}


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and standard deviation (over n, not n - 1) of the scores of the splits."""

    mean: float
    std: float
    num_samples: int
    num_splits: int


def compute(*, logits: Tensor) -> dict[str, float]:
    """The score `is` of logits [N, C] in the usual ten splits. Errors: DataError."""
    return {"is": inception_score(logits).mean}


def inception_score(logits: Tensor, *, num_splits: int = 10, shuffle_seed: int | None = 2020) -> InceptionScore:
    """The score of logits [N, C], in float64.

    The defaults are torch-fidelity's: rows shuffled by NumPy's legacy generator with seed 2020, then cut in ten.
    ADM's evaluator does not shuffle (`shuffle_seed=None`) and cuts every 5000 rows. Errors: DataError when there
    are fewer rows than splits or a logit is not finite.
    """
    if len(logits) < num_splits:
        raise DataError(f"an Inception score in {num_splits} splits needs as many images, got {len(logits)}")
    if not torch.isfinite(logits).all():
        raise DataError("logits contain NaN or infinity")
    if shuffle_seed is not None:
        order = np.random.RandomState(shuffle_seed).permutation(len(logits))
        logits = logits[torch.from_numpy(order).to(logits.device)]
    ends = [i * len(logits) // num_splits for i in range(num_splits + 1)]
    scores = [_score(logits[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return InceptionScore(
        mean=float(np.mean(scores)), std=float(np.std(scores)), num_samples=len(logits), num_splits=num_splits
    )


def _score(logits: Tensor) -> float:
    log_p = logits.double().log_softmax(dim=1)
    log_marginal = log_p.logsumexp(dim=0) - np.log(len(log_p))
    return float((log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp())
