"""Ten folds of the rows of a set, and the jackknife over them, which gives bias and error bars without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from corecli.base.rng import numpy_generator

NUM_FOLDS = 10
_PERIOD = 1009  # a prime, so that no regular order of the rows (labels 0..9 in turn) can line up with the folds
_STUDENT_T = 2.262157162798205  # scipy.special.stdtrit(NUM_FOLDS - 1, 0.975), which takes 0.1 s to import


def folds_of(rows: Tensor) -> Tensor:
    """Return the folds 0..9 of row numbers int64 [N]; rows with the same number (members of a group) share a fold."""
    return torch.from_numpy(_fold_table()[(rows.cpu() % (_PERIOD * NUM_FOLDS)).numpy()])


def jackknife(value: float, left_out: Sequence[float]) -> tuple[float, float, tuple[float, float]]:
    """Return (bias-corrected value, standard error, 95% interval) from the values without each of the ten folds.

    Source: Efron & Tibshirani 1993, Eq. 11.5 and 10.10 for groups: g F - (g - 1) mean, and (g - 1) / g sum of squares.
    """
    num, values = NUM_FOLDS, np.asarray(left_out, dtype=np.float64)
    corrected = float(num * value - (num - 1) * values.mean())
    error = float(np.sqrt((num - 1) / num * np.square(values - values.mean()).sum()))
    margin = _STUDENT_T * error
    return corrected, error, (corrected - margin, corrected + margin)


def _fold_table() -> np.ndarray:
    """Return the fold of each row number modulo the period; each run of ten rows has all folds once, shuffled."""
    runs = np.tile(np.arange(NUM_FOLDS), (_PERIOD, 1))
    return numpy_generator(0, "jackknife-folds").permuted(runs, axis=1).reshape(-1)
