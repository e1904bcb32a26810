"""Linear probe on cached features: softmax classifiers with many settings, trained in one stacked matrix product.

Features are standardized by the statistics of train. For every (learning rate, weight decay), a classifier is trained
on the same minibatches by SGD with momentum and a cosine schedule to 0. The best setting on a stratified hold-out of
train is fitted again on all of train, and scored once on test, which has no part in any choice. Weights start at zero,
so that seeds differ in the hold-out and the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corecli.base.rng import numpy_generator
from corecli.metrics.parts.classes import check_labeled, index_classes
from corecli.metrics.parts.fitting import ROWS_PER_BLOCK, Classifier, Scaling, Split, holdout
from corecli.metrics.parts.scores import Scores, predict, summarize

DIRECTION = {"probe_top1": "higher"}

Setting = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How the probe is trained. Learning rates are for the mean loss of a batch, and not scaled by the batch size."""

    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    num_epochs: int = 20
    min_steps: int = 500  # so that training converges on small sets, too
    batch_size: int = 256
    momentum: float = 0.9
    holdout: float = 0.1  # share of each class in train on which the setting is chosen


def compute(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> dict[str, float]:
    """Return `probe_top1` with the default options and one seed. Errors: DataError."""
    return {"probe_top1": linear_probe(train_features, train_labels, test_features, test_labels).top1}


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    options: ProbeOptions | None = None,
    *,
    seeds: Sequence[int] = (0,),
) -> Scores:
    """Train on train_features [N, D] and score test_features [M, D], on the device of the features.

    Labels are int64 with any values >= 0; `per_class` has keys 0..C-1, the rank of a label among those of train.
    Errors: DataError if labels are missing or of one class only, or occur in test but not in train, or if no class has
    two training rows, which a hold-out needs.
    """
    options = options or ProbeOptions()
    check_labeled(train_features, train_labels, where="train")
    check_labeled(test_features, test_labels, where="test")
    classes, train_index, test_index = index_classes(train_labels, test_labels)
    runs = []
    for seed in seeds:
        split = holdout(train_index, options.holdout, seed)
        classifier, _ = fit_probe(train_features, train_index, split, options, seed=seed)
        runs.append(predict(classifier.logits, test_features, test_index))
    return summarize(runs, test_index, num_classes=len(classes))


def fit_probe(
    features: Tensor, labels: Tensor, split: Split, options: ProbeOptions | None = None, *, seed: int = 0
) -> tuple[Classifier, Setting]:
    """Choose a setting on `split.held` and train with it on `split.final`.

    Returns (classifier, (learning rate, weight decay)). features: [N, D]; labels: int64 [N] in 0..C-1, on any device.
    """
    options = options or ProbeOptions()
    train = _Rows.scaled(features, labels, split.final)
    setting = _select(train, split, options, seed)
    heads = _fit(train, split.final, [setting], options, seed)
    return Classifier(scaling=train.scaling, weight=heads.weight, bias=heads.bias), setting


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Labeled features, which are scaled when they are read, so that there is no second copy."""

    features: Tensor
    labels: Tensor
    num_classes: int
    scaling: Scaling

    @staticmethod
    def scaled(features: Tensor, labels: Tensor, rows: Tensor) -> _Rows:
        """Return all rows, with the scaling that standardizes the given rows."""
        labels = labels.to(features.device)
        scaling = Scaling.of(features, rows)
        return _Rows(features=features, labels=labels, num_classes=int(labels.max()) + 1, scaling=scaling)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.features.device)
        return self.scaling(self.features[rows]), self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """K linear classifiers side by side: weight [D, K C], bias [K C]."""

    weight: Tensor
    bias: Tensor
    num_heads: int

    def logits(self, x: Tensor) -> Tensor:
        """Return [B, K, C] for scaled rows x [B, D]."""
        return torch.addmm(self.bias, x, self.weight).view(len(x), self.num_heads, -1)

    def judged(self, data: _Rows, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each head, the number of rows it predicts correctly and its mean cross-entropy: [K] each."""
        correct = torch.zeros(self.num_heads, dtype=torch.int64)
        loss = torch.zeros(self.num_heads, dtype=torch.float64)
        for part in rows.split(ROWS_PER_BLOCK):
            x, labels = data.read(part)
            logits = self.logits(x)
            own = labels[:, None, None].expand(-1, self.num_heads, 1)
            correct += ((~(logits <= logits.gather(2, own))).sum(2) == 0).sum(0).cpu()
            loss -= logits.log_softmax(2).gather(2, own).double().sum((0, 2)).cpu()
        return correct, loss / len(rows)


def _select(train: _Rows, split: Split, options: ProbeOptions, seed: int) -> Setting:
    """Return the (learning rate, weight decay) with the best accuracy on the held-out rows; the loss breaks ties."""
    grid = [(rate, decay) for rate in options.learning_rates for decay in options.weight_decays]
    if len(grid) == 1:
        return grid[0]
    correct, losses = _fit(train, split.fitted, grid, options, seed).judged(train, split.held)
    losses = losses.nan_to_num(nan=math.inf)
    return grid[max(range(len(grid)), key=lambda i: (int(correct[i]), -float(losses[i])))]


def _fit(train: _Rows, rows: Tensor, settings: list[Setting], options: ProbeOptions, seed: int) -> _Heads:
    """Train a head for each setting on the given rows, all on the same batches."""
    device, num_classes = train.features.device, train.num_classes
    rates, decays = (torch.tensor(c, device=device).repeat_interleave(num_classes) for c in zip(*settings, strict=True))
    weight = torch.zeros(train.features.shape[1], len(settings) * num_classes, device=device)
    bias = torch.zeros(len(settings) * num_classes, device=device)
    heads = _Heads(weight=weight, bias=bias, num_heads=len(settings))
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    batches = _batches(len(rows), options, seed)
    for step, batch in enumerate(batches):
        x, labels = train.read(rows[batch])
        gradient = heads.logits(x).softmax(2)
        gradient[torch.arange(len(x)), :, labels] -= 1
        gradient = gradient.flatten(1) / len(x)
        rate = rates * (0.5 * (1 + math.cos(math.pi * step / len(batches))))
        speed.mul_(options.momentum).addmm_(x.T, gradient).addcmul_(weight, decays)
        bias_speed.mul_(options.momentum).add_(gradient.sum(0))
        weight.addcmul_(speed, rate, value=-1)
        bias.addcmul_(bias_speed, rate, value=-1)
    return heads


def _batches(num_rows: int, options: ProbeOptions, seed: int) -> list[Tensor]:
    """Return the minibatches of the whole run by seed; each epoch has distinct rows and drops its last short batch."""
    size = min(options.batch_size, num_rows)
    per_epoch = num_rows // size
    num_epochs = max(options.num_epochs, math.ceil(options.min_steps / per_epoch))
    batches = []
    for epoch in range(num_epochs):
        order = torch.from_numpy(numpy_generator(seed, "probe", "order", epoch).permutation(num_rows))
        batches.extend(order[: per_epoch * size].split(size))
    return batches
