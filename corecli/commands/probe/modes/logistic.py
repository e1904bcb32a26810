"""Multinomial logistic regression on features computed once, fitted by L-BFGS for 45 values of C (DINOv2, SynCLR)."""

from __future__ import annotations

from dataclasses import dataclass

from corecli.commands.probe.context import Context, Fitted
from corecli.metrics.parts.fitting import Split
from corecli.metrics.parts.logistic import fit_logistic

NEEDS, NUM_SEEDS, USES_VAL = "features", 1, True
MULTI_LABEL = True  # one binary classifier for each class


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of logistic."""

    k: tuple[int, ...] = (20,)
    knn_temperature: float = 0.07
    holdout: float = 0.1


def fit(context: Context, split: Split, *, options: Options, seed: int) -> Fitted:
    """Choose C, then fit with it; `options` and `seed` matter only for the k-NN vote and the split."""
    classifier, cost = fit_logistic(context.features, context.numbers, split)
    return Fitted(classifier=classifier, setting=cost)
