"""The linear probe on cached features: a softmax classifier whose whole sweep of settings is one stacked matmul.

Features are standardised by train statistics. Every (learning rate, weight decay) trains on the same minibatches of the
same rows by SGD with momentum and a cosine to 0; the best on a stratified hold-out of train is refitted on all of train
and scored once on test, which plays no part in any choice. Heads start at zero, so seeds differ by hold-out and order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator
from corecli.metrics._classes import check_labelled, index_classes

DIRECTION = {"probe_top1": "higher"}

_ROWS_PER_BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How to train the probe. Learning rates are used as they stand (on the mean loss of a batch), not times B/256."""

    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    num_epochs: int = 20
    min_steps: int = 500  # so that a small training set is also trained to the end
    batch_size: int = 256
    momentum: float = 0.9
    holdout: float = 0.1  # share of each class in train that selects the setting
    num_seeds: int = 3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Test accuracies in 0..1, averaged over seeds; top5 is None below 6 classes; per_class is keyed by label.

    seed_interval: 95 % Student t interval of top1 over seeds (hold-out and order; None for one seed), so how
    repeatable the probe is; test_interval: 95 % Wilson interval for the finite test set, so how far top1 may be
    from the accuracy on new images. settings: the (learning rate, weight decay) chosen by each seed.
    """

    top1: float
    top5: float | None
    mean_per_class: float
    per_class: dict[int, float]
    seed_interval: tuple[float, float] | None
    test_interval: tuple[float, float]
    top1_by_seed: tuple[float, ...]
    settings: tuple[tuple[float, float], ...]
    num_train: int
    num_test: int
    num_classes: int


def compute(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> dict[str, float]:
    """`probe_top1` with the default options. Errors: DataError."""
    return {"probe_top1": linear_probe(train_features, train_labels, test_features, test_labels).top1}


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    options: ProbeOptions | None = None,
) -> ProbeResult:
    """Train on train_features [N, D] and score test_features [M, D], on the device the features are on.

    Labels are int64 with any values >= 0. Errors: DataError when labels are missing, of one class only, in test
    but not in train, or when no class has the two training images that a hold-out needs.
    """
    options = options or ProbeOptions()
    check_labelled(train_features, train_labels, where="train")
    check_labelled(test_features, test_labels, where="test")
    classes, train_index, test_index = index_classes(train_labels, test_labels)
    train = _Rows.standardised(train_features, train_index, len(classes))
    test = train.like(test_features, test_index)
    seeds = [options.seed + i for i in range(options.num_seeds)]
    settings = [_select(train, options, seed) for seed in seeds]
    ranks = [_fit(train, train.all, [s], options, seed).ranks(test)[0] for s, seed in zip(settings, seeds, strict=True)]
    return _summary(ranks, test_index, classes, settings, len(train_features))


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Labelled features, standardised as they are read, so that no second copy of them exists."""

    features: Tensor
    labels: Tensor
    num_classes: int
    mean: Tensor
    scale: Tensor

    @staticmethod
    def standardised(features: Tensor, labels: Tensor, num_classes: int) -> _Rows:
        total = features.new_zeros(features.shape[1], dtype=torch.float64)
        squares = total.clone()
        for block in features.split(_ROWS_PER_BLOCK):
            total += block.double().sum(0)
        mean = total / len(features)
        for block in features.split(_ROWS_PER_BLOCK):
            squares += (block.double() - mean).square().sum(0)
        deviation = (squares / len(features)).sqrt()
        scale = torch.where(deviation > 1e-6 * deviation.max(), 1 / deviation, 0.0)  # constant features say nothing
        return _Rows(
            features=features,
            labels=labels.to(features.device),
            num_classes=num_classes,
            mean=mean.float(),
            scale=scale.float(),
        )

    def like(self, features: Tensor, labels: Tensor) -> _Rows:
        """Other rows under the same standardisation, on the same device."""
        device = self.features.device
        return replace(self, features=features.to(device), labels=labels.to(device))

    @property
    def all(self) -> Tensor:
        return torch.arange(len(self.features))

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(self.features.device)
        return (self.features[rows].float() - self.mean) * self.scale, self.labels[rows]


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """K linear classifiers side by side: weight [D, K C], bias [K C]."""

    weight: Tensor
    bias: Tensor
    num_heads: int

    def logits(self, x: Tensor) -> Tensor:
        """[B, K, C] for standardised rows x [B, D]."""
        return torch.addmm(self.bias, x, self.weight).view(len(x), self.num_heads, -1)

    def ranks(self, data: _Rows) -> Tensor:
        """How many classes each head finds likelier than the true one: int64 [K, N]; the last rank for NaN."""
        found = [self._block_ranks(*data.read(rows)) for rows in data.all.split(_ROWS_PER_BLOCK)]
        return torch.cat(found, dim=1).cpu()

    def _block_ranks(self, x: Tensor, labels: Tensor) -> Tensor:
        logits = self.logits(x)
        own = logits.gather(2, labels[:, None, None].expand(-1, self.num_heads, 1))
        return (~(logits <= own)).sum(2).T

    def losses(self, data: _Rows, rows: Tensor) -> Tensor:
        """The mean cross-entropy of each head on the given rows: [K]."""
        x, labels = data.read(rows)
        own = self.logits(x).log_softmax(2).gather(2, labels[:, None, None].expand(-1, self.num_heads, 1))
        return -own.mean((0, 2)).cpu()


def _select(train: _Rows, options: ProbeOptions, seed: int) -> tuple[float, float]:
    """The (learning rate, weight decay) most accurate on a hold-out of train; ties go to the lower loss."""
    fitted, held = _split(train.labels.cpu().numpy(), options.holdout, seed)
    grid = [(rate, decay) for rate in options.learning_rates for decay in options.weight_decays]
    if len(grid) == 1:
        return grid[0]
    heads = _fit(train, fitted, grid, options, seed)
    held_out = train.like(train.features[held.to(train.features.device)], train.labels[held.to(train.labels.device)])
    correct = (heads.ranks(held_out) == 0).sum(1).tolist()
    losses = heads.losses(held_out, held_out.all).nan_to_num(nan=math.inf).tolist()
    best = max(range(len(grid)), key=lambda i: (correct[i], -losses[i]))
    return grid[best]


def _split(labels: np.ndarray, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to fit and to hold out: `share` of every class, at least one row and never all of them."""
    order = numpy_generator(seed, "probe", "holdout").permutation(len(labels))
    held = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        held.append(rows[: min(len(rows) - 1, max(1, round(share * len(rows))))])
    held = np.concatenate(held)
    if not len(held):
        raise DataError("every class has one image", where="train", hint="two are needed to hold one out")
    return torch.from_numpy(np.setdiff1d(order, held)), torch.from_numpy(np.sort(held))


def _fit(train: _Rows, rows: Tensor, settings: list[tuple[float, float]], options: ProbeOptions, seed: int) -> _Heads:
    """Train one head for each setting on the given rows; all heads see the same batches."""
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
    """The minibatches of the whole run, as a function of the seed: epochs of distinct rows, short tails dropped."""
    size = min(options.batch_size, num_rows)
    per_epoch = num_rows // size
    num_epochs = max(options.num_epochs, math.ceil(options.min_steps / per_epoch))
    batches = []
    for epoch in range(num_epochs):
        order = torch.from_numpy(numpy_generator(seed, "probe", "order", epoch).permutation(num_rows))
        batches.extend(order[: per_epoch * size].split(size))
    return batches


def _summary(
    ranks: list[Tensor], labels: Tensor, classes: Tensor, settings: list[tuple[float, float]], num_train: int
) -> ProbeResult:
    hits = torch.stack([r == 0 for r in ranks]).double()
    by_seed = hits.mean(1)
    present = labels.unique()
    per_class = {int(classes[c]): float(hits[:, labels == c].mean()) for c in present}
    return ProbeResult(
        top1=float(by_seed.mean()),
        top5=float(torch.stack([r < 5 for r in ranks]).double().mean()) if len(classes) > 5 else None,
        mean_per_class=sum(per_class.values()) / len(per_class),
        per_class=per_class,
        seed_interval=student_interval(by_seed.tolist()),
        test_interval=wilson_interval(float(by_seed.mean()), len(labels)),
        top1_by_seed=tuple(by_seed.tolist()),
        settings=tuple(settings),
        num_train=num_train,
        num_test=len(labels),
        num_classes=len(classes),
    )


def student_interval(values: list[float]) -> tuple[float, float] | None:
    """The 95 % Student t interval of the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    margin = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean - margin, mean + margin


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """The 95 % interval of a binomial share seen in `num` trials (Wilson 1927); sound also near 0 and 1."""
    z2 = float(ndtri(0.975)) ** 2
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    margin = math.sqrt(z2 * (share * (1 - share) / num + z2 / (4 * num**2))) / (1 + z2 / num)
    return centre - margin, centre + margin
