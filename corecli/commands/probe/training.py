"""What modes share that train by gradient descent: steps and learning rates, batches, optimizers, the linear layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corecli.base.errors import CorecliError, DataError
from corecli.commands.probe.context import Context
from corecli.data.loader import Loader
from corecli.data.order import Order
from corecli.engine import optim
from corecli.engine.dist import World
from corecli.engine.schedule import learning_rate
from corecli.metrics.parts.fitting import Classifier, Scaling
from corecli.nets.initial import seeded
from corecli.views import augment
from corecli.views.policies import get_policy

_LARS_ETA = 0.001  # trust coefficient of GenSSL, MoCo v3 and MAE
_DROPS = (0.6, 0.8)  # parts of training after which --schedule steps divides the rate by 10 (solo-learn's 60% and 80%)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of every mode that trains by gradient descent; the modes give the defaults."""

    epochs: int
    augment: str
    train_batch: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    warmup_epochs: int
    lars_bias: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """Batch size over all processes, number of steps, and the learning rate of each step."""

    batch_size: int
    total_steps: int
    warmup_steps: int
    peak: float
    schedule: str

    @staticmethod
    def of(options: TrainOptions, num_rows: int, world: World, *, in_pairs: bool = False) -> Training:
        """Return the training on `num_rows` images, which also bound the batch size.

        in_pairs: each process gets an even number of images. Errors: DataError if there are too few images.
        """
        size = min(options.train_batch, num_rows)
        size -= size % (2 * world.size if in_pairs else world.size)
        if not size:
            raise DataError(f"{num_rows} images are fewer than {world.size} processes")
        per_epoch = num_rows // size
        return Training(
            batch_size=size,
            total_steps=options.epochs * per_epoch,
            warmup_steps=options.warmup_epochs * per_epoch,
            peak=options.lr * size / 256,
            schedule=options.schedule,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        shape = "cosine" if self.schedule == "cosine" else "constant"
        lr = learning_rate(
            step, peak=self.peak, total_steps=self.total_steps, warmup_steps=self.warmup_steps, shape=shape
        )
        drops = 0 if shape == "cosine" else sum(step >= share * self.total_steps for share in _DROPS)
        return lr * 0.1**drops


def views_of(
    context: Context, training: Training, rows: Tensor, augment_name: str, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (step, views, classes) for the whole run: this process's part of each batch, by (seed, step).

    rows: training rows to show, int64 [R]; views: float [b, 3, H, W] in [0, 1].
    """
    reader, train = context.reader, context.problem.train
    set_rows = torch.from_numpy(train.rows)
    number_of = torch.full((int(set_rows.max()) + 1,), -1)
    number_of[set_rows] = context.numbers[: len(set_rows)]
    policy = get_policy(augment_name, size=reader.net.spec["preprocessing"]["image_size"])
    order = order_of(set_rows[rows], training, seed)
    for step, images, shown in Loader(reader.images(train.spec), order, world=reader.world, workers=reader.workers):
        size = (images.shape[-2], images.shape[-1])
        drawn = augment.draw(policy, seed=seed, step=step, view=0, batch=training.batch_size, image_size=size)
        first = reader.world.rank * len(shown)
        views = augment.augment(images, drawn[first : first + len(shown)])
        yield step, views, number_of[shown].to(reader.world.device)


def order_of(rows: Tensor, training: Training, seed: int) -> Order:
    """Return the batches of the whole run."""
    return Order(
        rows.numpy(),
        segments=(len(rows),),
        batch_size=training.batch_size,
        seed=seed,
        total_steps=training.total_steps,
    )


def build_optimizer(
    options: TrainOptions,
    peak: float,
    weights: Iterable[nn.Parameter],
    *,
    weight_decay: float,
    rate_scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer that `options` name. rate_scales: factors of single weights' learning rates."""
    return optim.build_optimizer(
        options.optimizer,
        weights,
        lr=peak,
        weight_decay=weight_decay,
        eta=_LARS_ETA,
        clip=False,
        exclude_1d=options.lars_bias != "adapt",
        rate_scales=rate_scales,
    )


def new_linear(dim: int, num_classes: int, seed: int, *, std: float) -> nn.Linear:
    """Return a linear layer with normal weights of deviation `std`, by seed, and zero biases."""
    with seeded(seed, "probe"):
        linear = nn.Linear(dim, num_classes)
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    return linear


def classifier_of(linear: nn.Linear, norm: nn.BatchNorm1d | None = None) -> Classifier:
    """Return a trained linear layer as a classifier, with the running statistics of the BatchNorm before it."""
    weight = linear.weight.detach()
    mean, scale = weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1])
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, scale = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
    return Classifier(scaling=Scaling(mean=mean, scale=scale), weight=weight.T, bias=linear.bias.detach())


def check_finite(loss: Tensor) -> None:
    """Raise CorecliError if training has diverged."""
    if not torch.isfinite(loss):
        raise CorecliError(f"training diverged: the loss is {float(loss)}", hint="lower --lr")
