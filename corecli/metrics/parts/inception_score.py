"""Inception score: high if the classifier is confident about each sample and its answers vary between samples.

    IS = exp(mean over x of KL(p(y|x) || p(y)))                         (Salimans et al. 2016, section 4)

Published figures use the 1008 logits of the FID Inception network without their bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Mean and standard deviation of the scores of the splits; the deviation divides by n, not n - 1."""

    mean: float
    std: float
    num_samples: int
    num_splits: int


def inception_score(logits: Tensor, *, num_splits: int = 10, shuffle_seed: int | None = 2020) -> InceptionScore:
    """Return the score of logits [N, C], computed in float64.

    The defaults are those of torch-fidelity: NumPy's legacy generator with seed 2020 shuffles the rows, which are then
    cut into ten splits. ADM's evaluator does not shuffle (`shuffle_seed=None`) and uses splits of 5000 rows.
    Errors: DataError if there are fewer rows than splits or a logit is not finite.
    """
    if len(logits) < num_splits:
        raise DataError(f"the Inception score needs at least one image per split: {len(logits)} for {num_splits}")
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
