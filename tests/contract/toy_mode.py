"""Nearest class mean: a feature belongs to the class with the closest mean (Mensink et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corecli.commands.probe.context import Context, Fitted
from corecli.metrics.parts.fitting import Classifier, Scaling, Split

NEEDS, NUM_SEEDS, USES_VAL = "features", 1, False


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of toy-mode."""

    shrink: float = 0.0  # from 0, the class means themselves, to 1, their average


def fit(context: Context, split: Split, *, options: Options, seed: int) -> Fitted:
    """Compute the class means, on which the seed has no influence."""
    scaling = Scaling.of(context.features, split.final)
    x = scaling(context.features[split.final.to(context.features.device)])
    numbers = context.numbers[split.final]
    means = torch.stack([x[(numbers == number).to(x.device)].mean(0) for number in range(context.num_classes)])
    means = torch.lerp(means, means.mean(0, keepdim=True), options.shrink)
    return Fitted(classifier=Classifier(scaling=scaling, weight=means.T, bias=-means.square().sum(1) / 2))
