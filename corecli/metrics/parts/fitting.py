"""Shared by linear classifiers of features: splits of the rows, standardization, and the classifier itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator

ROWS_PER_BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class Split:
    """Row numbers, int64 each: settings train on `fitted` and are compared on `held`; the best trains on `final`."""

    fitted: Tensor
    held: Tensor
    final: Tensor


def holdout(labels: Tensor, share: float, seed: int, *, rows: Tensor | None = None) -> Split:
    """Hold out `share` of every class, but at least one row, and never all; `final` is all of `rows`.

    labels: int64 [N]; rows: default all. Errors: DataError if no class has two rows.
    """
    rows = torch.arange(len(labels)) if rows is None else rows
    numbers = labels.cpu()[rows].numpy()
    order = numpy_generator(seed, "probe", "holdout").permutation(len(numbers))
    held = []
    for label in np.unique(numbers):
        own = order[numbers[order] == label]
        held.append(own[: min(len(own) - 1, max(1, round(share * len(own))))])
    chosen = np.sort(np.concatenate(held))
    if not len(chosen):
        raise DataError("every class has only one image", where="train", hint="a hold-out needs two")
    fitted = np.setdiff1d(order, chosen)
    return Split(fitted=rows[torch.from_numpy(fitted)], held=rows[torch.from_numpy(chosen)], final=rows)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """x -> (x - mean) * scale, both [D] float32."""

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(features: Tensor, rows: Tensor) -> Scaling:
        """Return the scaling that gives these rows mean 0 and deviation 1; constant features become 0."""
        total = features.new_zeros(features.shape[1], dtype=torch.float64)
        squares = total.clone()
        for block in blocks(features, rows):
            total += block.double().sum(0)
        mean = total / len(rows)
        for block in blocks(features, rows):
            squares += (block.double() - mean).square().sum(0)
        deviation = (squares / len(rows)).sqrt()
        scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)
        return Scaling(mean=mean.float(), scale=scale.float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) * self.scale


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A linear classifier of unscaled features: weight [D, C] and bias [C] apply to scaled features."""

    scaling: Scaling
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return [N, C] for features [N, D], on the classifier's device."""
        x = self.scaling(features.to(self.weight.device))
        return torch.addmm(self.bias, x, self.weight)


def blocks(features: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """Yield the given rows of features [N, D] in blocks, so that there is no second copy."""
    for part in rows.split(ROWS_PER_BLOCK):
        yield features[part.to(features.device)]
