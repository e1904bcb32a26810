"""Inception score: mean and standard deviation over --splits random parts of the samples.

The logits are used without bias. Samples are shuffled as torch-fidelity does; ADM's evaluator does not shuffle and
scores every 5000 images. The name of this file is a keyword, so the function that others import is in
`parts/inception_score.py`.
"""

from __future__ import annotations

from torch import Tensor

from corecli.metrics.parts.inception_score import inception_score

NEEDS = ("logits", "num_splits")
SCORES = {"is": "higher", "is_std": None}
PLACE = 3
DEFAULT_FROM = 10


def compute(*, logits: Tensor, num_splits: int) -> dict[str, float]:
    """Return the score of logits [N, C]. Errors: DataError for fewer samples than splits."""
    found = inception_score(logits, num_splits=num_splits)
    return {"is": found.mean, "is_std": found.std}
