"""Two feature tables of the same images, compared for `corecli fid --metrics cka,opd`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.errors import DataError
from corecli.commands.fid.scores import Score

if TYPE_CHECKING:
    import torch

    from corecli.data.features import FeatureTable

SCORES = {"cka": ("cka", "cka_debiased"), "opd": ("opd",)}  # what each metric of the verb reports
NUM_RESAMPLES = 100
_QUANTILES = (0.025, 0.975)


def compare_tables(
    paths: tuple[Path, Path],
    *,
    metrics: tuple[str, ...],
    num_resamples: int,
    seed: int,
    device: torch.device,
    shown: bool,
) -> tuple[list[Score], dict[str, Any]]:
    """The distances between two tables, joined by key, each with its bootstrap interval, and facts about them.

    Errors: DataError when their images differ, naming one.
    """
    from corecli.data.features import load_features
    from corecli.engine.progress import Progress
    from corecli.metrics.similarity import bootstrap, similarity

    first, second = (load_features(path) for path in paths)
    _require_same_images(first, second, paths)
    x, y = first.features.to(device), second.lookup(first.keys).to(device)
    value, resamples = similarity(x, y), []
    with Progress(f"fid {paths[1]}: resamples", total=num_resamples, shown=shown and num_resamples > 0) as progress:
        for resample in bootstrap(x, y, num_resamples=num_resamples, seed=seed):
            resamples.append(resample)
            progress.advance()
    scores = []
    for name in (score for metric in SCORES if metric in metrics for score in SCORES[metric]):
        interval = None
        if resamples:
            low, high = np.nanquantile([getattr(resample, name) for resample in resamples], _QUANTILES).tolist()
            interval = (low, high)
        scores.append(Score(name=name, value=getattr(value, name), interval=interval))
    return scores, {"num_images": len(first), "dims": [x.shape[1], y.shape[1]], "num_resamples": num_resamples}


def _require_same_images(first: FeatureTable, second: FeatureTable, paths: tuple[Path, Path]) -> None:
    unpaired = set(first.keys) ^ set(second.keys)
    if unpaired:
        common = len(set(first.keys) & set(second.keys))
        reason = f"{len(second)} images, of which {common} are among the {len(first)} of {paths[0]}"
        hint = f"{min(unpaired)!r} is in one alone; extract both from the same image set"
        raise DataError(reason, where=paths[1], hint=hint)
