"""Linear classifier on features computed once; 24 settings of SGD train side by side and the best one is kept."""

from __future__ import annotations

from dataclasses import dataclass

from corecli.commands.probe.context import Context, Fitted
from corecli.metrics.parts import linear_probe
from corecli.metrics.parts.fitting import Split

NEEDS, NUM_SEEDS, USES_VAL = "features", 3, True


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of sweep."""

    epochs: int = 20
    k: tuple[int, ...] = (20,)
    knn_temperature: float = 0.07
    holdout: float = 0.1


def fit(context: Context, split: Split, *, options: Options, seed: int) -> Fitted:
    """Choose a learning rate and a weight decay, then train with them."""
    how = linear_probe.ProbeOptions(num_epochs=options.epochs)
    classifier, setting = linear_probe.fit_probe(context.features, context.numbers, split, how, seed=seed)
    return Fitted(classifier=classifier, setting=setting)
