"""Linear classifier on a frozen encoder, trained by SGD or LARS on new crops in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import about
from corecli.commands.probe.context import Context, Fitted
from corecli.commands.probe.training import (
    Training,
    TrainOptions,
    build_optimizer,
    check_finite,
    classifier_of,
    new_linear,
    order_of,
    views_of,
)
from corecli.engine import optim
from corecli.engine.dist import World, gather_with_gradient
from corecli.engine.progress import Progress
from corecli.metrics.parts.fitting import Classifier, Split

NEEDS, NUM_SEEDS, USES_VAL = "views", 1, False

_HEAD_STD = 0.01  # MoCo v3

Batches = Iterator[tuple[int, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    """Options of sgd: by default MoCo v3's classifier for ResNets."""

    epochs: int = 90
    augment: str = "crop"
    train_batch: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    head: str = "linear"
    lars_bias: str = "plain"


def fit(context: Context, split: Split, *, options: Options, seed: int) -> Fitted:
    """Train on augmented views, or on features where those were computed once (augment=none)."""
    rows, reader = split.final, context.reader
    world = reader.world if context.computed is None else World()
    with about(context.problem.train.spec):
        training = Training.of(options, len(rows), world)
    if context.computed is None:
        batches, dim = _encoded_views(context, training, rows, options.augment, seed), reader.num_features
    else:
        batches, dim = _cached_features(context, training, rows, seed), context.features.shape[1]
    linear = new_linear(dim, context.num_classes, seed, std=_HEAD_STD)
    return Fitted(classifier=_train(linear, batches, training, options, shown=reader.shown))


def _cached_features(context: Context, training: Training, rows: Tensor, seed: int) -> Batches:
    """Yield (step, features [B, D], classes [B])."""
    features = context.features
    numbers, order = context.numbers.to(features.device), order_of(rows, training, seed)
    for step in range(training.total_steps):
        batch = torch.from_numpy(order.batch(step)).to(features.device)
        yield step, features[batch], numbers[batch]


def _encoded_views(context: Context, training: Training, rows: Tensor, augment: str, seed: int) -> Batches:
    """Yield the same. Every process encodes its part of a batch and trains the same classifier on all of it."""
    for step, views, labels in views_of(context, training, rows, augment, seed):
        with torch.no_grad():
            features = context.reader.encode(views)
        yield step, gather_with_gradient(features.float()), gather_with_gradient(labels)


def _train(linear: nn.Linear, batches: Batches, training: Training, options: Options, *, shown: bool) -> Classifier:
    step, x, labels = next(batches)
    linear, norm = linear.to(x.device), None
    if options.head == "batchnorm":
        norm = nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6).to(x.device)
    optimizer = build_optimizer(options, training.peak, linear.parameters(), weight_decay=options.weight_decay)
    with Progress("probe sgd", total=training.total_steps, shown=shown) as progress:
        while True:
            optim.set_learning_rate(optimizer, training.rate(step))
            loss = F.cross_entropy(linear(x if norm is None else norm(x)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.advance(images=len(x))
            if step + 1 == training.total_steps:
                check_finite(loss)
                return classifier_of(linear, norm)
            step, x, labels = next(batches)
