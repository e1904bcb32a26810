"""Classifiers that `probe` trains by stochastic gradient descent: on a frozen encoder, or together with it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import CorecliError, DataError, about
from corecli.base.rng import derive
from corecli.commands.parts.inputs import num_workers, open_images
from corecli.commands.probe.options import of_mode
from corecli.data.loader import Loader
from corecli.data.order import Order
from corecli.engine import optim
from corecli.engine.dist import World, average_gradients, gather_with_gradient
from corecli.engine.ema import EMA
from corecli.engine.precision import autocast, place
from corecli.engine.progress import Progress
from corecli.engine.schedule import learning_rate
from corecli.metrics.parts.fitting import Classifier, Scaling
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.nets.depth import rate_scales
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded
from corecli.nets.vit import set_drop_path
from corecli.views import augment
from corecli.views.mixing import draw_mixing, erase, mix
from corecli.views.policies import get_policy
from corecli.views.randaugment import rand_augment

if TYPE_CHECKING:
    from corecli.commands.probe.options import Config
    from corecli.commands.probe.problem import Problem

_LARS_ETA = 0.001  # GenSSL's, MoCo v3's and MAE's
_DROPS = (0.6, 0.8)  # where --schedule steps divides the rate by ten: solo-learn's epochs 60 and 80 of 100
_HEAD_STD = {"sgd": 0.01, "finetune": 2e-5}  # MoCo v3; SynCLR, Table 14
_UNDECAYED = ("_token", "pos_embed")  # by weight decay

Batches = Iterator[tuple[int, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A classifier, the setting that was chosen for it, and the encoder where it was trained as well."""

    classifier: Classifier
    setting: Any = None
    encoder: Encoder | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, in which batches and at which rates."""

    batch_size: int
    total_steps: int
    warmup_steps: int
    peak: float
    schedule: str

    @staticmethod
    def of(config: Config, num_rows: int, world: World) -> Plan:
        """The plan for a training set of `num_rows`; a batch is as large as asked for, or as there are rows."""
        size = min(of_mode(config, "train_batch"), num_rows)
        mixes = config.mode == "finetune" and (of_mode(config, "mixup") or of_mode(config, "cutmix"))
        size -= size % (2 * world.size if mixes else world.size)  # pairs of images stay on their process
        if not size:
            raise DataError(f"{num_rows} images are fewer than {world.size} processes")
        per_epoch = num_rows // size
        return Plan(
            batch_size=size,
            total_steps=of_mode(config, "epochs") * per_epoch,
            warmup_steps=of_mode(config, "warmup_epochs") * per_epoch,
            peak=of_mode(config, "lr") * size / 256,
            schedule=of_mode(config, "schedule"),
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        shape = "cosine" if self.schedule == "cosine" else "constant"
        lr = learning_rate(
            step, peak=self.peak, total_steps=self.total_steps, warmup_steps=self.warmup_steps, shape=shape
        )
        drops = 0 if shape == "cosine" else sum(step >= share * self.total_steps for share in _DROPS)
        return lr * 0.1**drops


def train_on_images(config: Config, problem: Problem, encoder: Encoder, world: World) -> list[Fitted]:
    """A classifier for each seed, from augmented views; all ranks take part. Errors: DataError, CorecliError."""
    train = _fine_tune if config.mode == "finetune" else _train_head_on_views
    seeds = range(config.seed, config.seed + len(problem.subsets))
    return [
        train(config, problem, encoder, rows, seed, world) for seed, rows in zip(seeds, problem.subsets, strict=True)
    ]


def train_on_features(config: Config, problem: Problem, features: Tensor, subset: Tensor, seed: int) -> Classifier:
    """A classifier from features computed once, [N, D], by the same protocol without augmentation."""
    plan = Plan.of(config, len(subset), World())
    numbers = problem.numbers.to(features.device)

    def batches() -> Batches:
        order = _order(subset, plan, seed)
        for step in range(plan.total_steps):
            rows = torch.from_numpy(order.batch(step)).to(features.device)
            yield step, features[rows], numbers[rows]

    return _train_head(config, plan, batches(), features.shape[1], len(problem.space), seed, shown=not config.quiet)


def _train_head_on_views(
    config: Config, problem: Problem, encoder: Encoder, subset: Tensor, seed: int, world: World
) -> Fitted:
    with about(problem.train.spec):
        plan = Plan.of(config, len(subset), world)

    def batches() -> Batches:
        """Every rank encodes its part of a batch, and trains the same classifier on all of it."""
        for step, views, labels in _views(config, problem, encoder, subset, seed, plan, world):
            with torch.no_grad(), autocast(config.precision, world.device):
                features = _chosen_layer(config, encoder, views)
            yield step, gather_with_gradient(features.float()), gather_with_gradient(labels)

    shown = world.is_main and not config.quiet
    dim = encoder.num_features if config.layer == "backbone" else encoder.projector_dim or 0
    classifier = _train_head(config, plan, batches(), dim, len(problem.space), seed, shown=shown)
    return Fitted(classifier=classifier)


def _train_head(
    config: Config, plan: Plan, batches: Batches, dim: int, num_classes: int, seed: int, *, shown: bool
) -> Classifier:
    step, x, labels = next(batches)
    linear = _new_linear(config, dim, num_classes, seed).to(x.device)
    norm = None
    if of_mode(config, "head") == "batchnorm":
        norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6).to(x.device)
    optimizer = _optimizer(config, plan, linear.parameters(), decays=True)
    with Progress("probe sgd", total=plan.total_steps, shown=shown) as progress:
        while True:
            optim.set_learning_rate(optimizer, plan.rate(step))
            loss = F.cross_entropy(linear(x if norm is None else norm(x)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress.advance(images=len(x))
            if step + 1 == plan.total_steps:
                check_finite(loss)
                return _classifier(linear, norm)
            step, x, labels = next(batches)


def _fine_tune(config: Config, problem: Problem, encoder: Encoder, subset: Tensor, seed: int, world: World) -> Fitted:
    """Train a copy of the encoder with a classifier, lower layers at lower rates."""
    with about(problem.train.spec):
        plan = Plan.of(config, len(subset), world)
    net = copy.deepcopy(encoder)
    if config.layer == "backbone":
        net.set_projector(None)
    if (drop_path := of_mode(config, "drop_path")) is not None:
        set_drop_path(net.backbone, drop_path)
    synchronize_batchnorm(place(net, world.device), world.device)
    dim = net.num_features if config.layer == "backbone" else net.projector_dim or 0
    head = _new_linear(config, dim, len(problem.space), seed).to(world.device)
    optimizers = _optimizers(config, plan, net, head)
    decay: float | None = of_mode(config, "ema")
    average = None if decay is None else EMA(nn.ModuleList([net, head]), decay=decay)
    loss = torch.zeros(())
    with Progress("probe finetune", total=plan.total_steps, shown=world.is_main and not config.quiet) as progress:
        for step, views, labels in _views(config, problem, net, subset, seed, plan, world):
            torch.manual_seed(derive(seed, "dropout", step, world.rank))
            net.train()
            views, others, keep = _distorted(config, net, views, labels, seed, step, plan, world)
            with autocast(config.precision, world.device):
                x = _chosen_layer(config, net, views)
            logits, smoothing = head(x.float()), of_mode(config, "label_smoothing")
            own, other = (F.cross_entropy(logits, which, label_smoothing=smoothing) for which in (labels, others))
            loss = keep * own + (1 - keep) * other
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients([*net.parameters(), *head.parameters()], world)
            for optimizer in optimizers:
                optim.set_learning_rate(optimizer, plan.rate(step))
                optimizer.step()
            if average is not None:
                average.update(nn.ModuleList([net, head]))
            progress.advance(images=plan.batch_size)
    check_finite(loss)
    if average is not None:
        net, head = cast(Iterable[Any], average.module)
    return Fitted(classifier=_classifier(head, None), encoder=net.eval())


def _distorted(
    config: Config, net: Encoder, views: Tensor, labels: Tensor, seed: int, step: int, plan: Plan, world: World
) -> tuple[Tensor, Tensor, float]:
    """(views after RandAugment, erasing and mixing, the other labels they have, the part that is their own)."""
    first = world.rank * len(views)
    told = {"seed": seed, "step": step, "first": first}
    if magnitude := of_mode(config, "rand_augment"):
        views = rand_augment(views, magnitude=magnitude, mean=net.mean, batch=plan.batch_size, **told)
    if probability := of_mode(config, "erasing"):
        views = erase(views, probability=probability, mean=net.mean, std=net.std, **told)
    mixup, cutmix, switch = (of_mode(config, name) for name in ("mixup", "cutmix", "mix_switch"))
    if not (mixup or cutmix):
        return views, labels, 1.0
    return mix(views, labels, draw_mixing(mixup=mixup, cutmix=cutmix, switch=switch, seed=seed, step=step))


def _optimizers(config: Config, plan: Plan, net: Encoder, head: nn.Linear) -> list[torch.optim.Optimizer]:
    """Optimizers of the weights with weight decay and of tokens and positions, lower layers at lower rates."""
    scales = rate_scales(net.backbone, of_mode(config, "layer_decay"))
    undecayed = {p: None for name, p in net.backbone.named_parameters() if name.endswith(_UNDECAYED)}
    decayed = [p for p in [*net.parameters(), *head.parameters()] if p not in undecayed]
    parts = ((decayed, True), ([p for p in undecayed if p.requires_grad], False))
    return [_optimizer(config, plan, part, decays=decays, scales=scales) for part, decays in parts if part]


def _optimizer(
    config: Config,
    plan: Plan,
    weights: Iterable[nn.Parameter],
    *,
    decays: bool,
    scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    return optim.build_optimizer(
        of_mode(config, "optimizer"),
        weights,
        lr=plan.peak,
        weight_decay=of_mode(config, "weight_decay") if decays else 0.0,
        eta=_LARS_ETA,
        clip=False,
        exclude_1d=config.lars_bias != "adapt",
        rate_scales=scales,
    )


def _views(
    config: Config, problem: Problem, encoder: Encoder, subset: Tensor, seed: int, plan: Plan, world: World
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, this rank's views of the batch, float [b, 3, H, W] in [0, 1], and their classes) for the whole run."""
    train = problem.train
    data = open_images(train.spec, config)
    rows = torch.from_numpy(train.rows)
    number_of = torch.full((int(rows.max()) + 1,), -1)
    number_of[rows] = problem.numbers[: len(rows)]
    policy = get_policy(of_mode(config, "augment"), size=encoder.spec["preprocessing"]["image_size"])
    loader = Loader(data, _order(rows[subset], plan, seed), world=world, workers=num_workers(config.workers))
    for step, images, picked in loader:
        size = (images.shape[-2], images.shape[-1])
        drawn = augment.draw(policy, seed=seed, step=step, view=0, batch=plan.batch_size, image_size=size)
        first = world.rank * len(picked)
        views = augment.augment(images, drawn[first : first + len(picked)])
        yield step, views, number_of[picked].to(world.device)


def _order(rows: Tensor, plan: Plan, seed: int) -> Order:
    return Order(
        rows.numpy(), segments=(len(rows),), batch_size=plan.batch_size, seed=seed, total_steps=plan.total_steps
    )


def _chosen_layer(config: Config, encoder: Encoder, views: Tensor) -> Tensor:
    h, z = encoder(views)
    return h if config.layer == "backbone" else z


def _new_linear(config: Config, dim: int, num_classes: int, seed: int) -> nn.Linear:
    with seeded(seed, "probe"):
        linear = nn.Linear(dim, num_classes)
        nn.init.normal_(linear.weight, std=_HEAD_STD[config.mode])
        nn.init.zeros_(linear.bias)
    return linear


def _classifier(linear: nn.Linear, norm: nn.BatchNorm1d | None) -> Classifier:
    weight = linear.weight.detach()
    mean, scale = weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1])
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, scale = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
    return Classifier(scaling=Scaling(mean=mean, scale=scale), weight=weight.T, bias=linear.bias.detach())


def check_finite(loss: Tensor) -> None:
    """Errors: CorecliError when training has diverged."""
    if not torch.isfinite(loss):
        raise CorecliError(f"training diverged: the loss is {float(loss)}", hint="lower --lr")
