"""Fine-tuning: the encoder trains together with a linear classifier, lower layers at lower learning rates."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import about
from corecli.base.rng import derive
from corecli.commands.probe.context import Context, Fitted
from corecli.commands.probe.training import (
    Training,
    TrainOptions,
    build_optimizer,
    check_finite,
    classifier_of,
    new_linear,
    views_of,
)
from corecli.engine import optim
from corecli.engine.dist import average_gradients
from corecli.engine.ema import EMA
from corecli.engine.precision import place
from corecli.engine.progress import Progress
from corecli.metrics.parts.fitting import Split
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.nets.depth import rate_scales
from corecli.nets.encoder import Encoder
from corecli.nets.vit import set_drop_path
from corecli.views.mixing import draw_mixing, erase, mix
from corecli.views.randaugment import rand_augment

NEEDS, NUM_SEEDS, USES_VAL = "images", 1, False

_HEAD_STD = 2e-5  # SynCLR, Table 14
_UNDECAYED = ("_token", "pos_embed")  # ends of the names of weights without weight decay


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    """Options of finetune: by default SynCLR's Table 14 for a ViT-B, without what the presets synclr-* add."""

    epochs: int = 100
    augment: str = "crop"
    train_batch: int = 1024
    optimizer: str = "adamw"
    lr: float = 5e-5
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_epochs: int = 20
    lars_bias: str = "plain"
    label_smoothing: float = 0.1
    layer_decay: float = 0.65
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5
    rand_augment: float = 0.0
    erasing: float = 0.0
    drop_path: float | None = None
    ema: float | None = None


def fit(context: Context, split: Split, *, options: Options, seed: int) -> Fitted:
    """Train a copy of the encoder with a new classifier; all processes take part."""
    world, train = context.reader.world, context.problem.train
    with about(train.spec):
        training = Training.of(options, len(split.final), world, in_pairs=bool(options.mixup or options.cutmix))
    net = _copy(context, options)
    reader = replace(context.reader, encoder=net)
    head = new_linear(reader.num_features, context.num_classes, seed, std=_HEAD_STD).to(world.device)
    optimizers = _optimizers(net, head, options, training.peak)
    average = None if options.ema is None else EMA(nn.ModuleList([net, head]), decay=options.ema)
    loss = torch.zeros(())
    with Progress("probe finetune", total=training.total_steps, shown=reader.shown) as progress:
        for step, views, labels in views_of(context, training, split.final, options.augment, seed):
            torch.manual_seed(derive(seed, "dropout", step, world.rank))
            net.train()
            views, others, keep = _distort(views, labels, net, options, seed, step, training, world.rank)
            logits = head(reader.encode(views).float())
            own, other = (
                F.cross_entropy(logits, which, label_smoothing=options.label_smoothing) for which in (labels, others)
            )
            loss = keep * own + (1 - keep) * other
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients([*net.parameters(), *head.parameters()], world)
            for optimizer in optimizers:
                optim.set_learning_rate(optimizer, training.rate(step))
                optimizer.step()
            if average is not None:
                average.update(nn.ModuleList([net, head]))
            progress.advance(images=training.batch_size)
    check_finite(loss)
    if average is not None:
        net, head = cast(Iterable[Any], average.module)
    return Fitted(classifier=classifier_of(head), encoder=net.eval())


def _copy(context: Context, options: Options) -> Encoder:
    """Return a copy of the encoder to train, up to the layer that is probed."""
    reader = context.reader
    net = copy.deepcopy(reader.net)
    if reader.layer == "backbone":
        net.set_projector(None)
    if options.drop_path is not None:
        set_drop_path(net.backbone, options.drop_path)
    synchronize_batchnorm(place(net, reader.world.device), reader.world.device)
    return net


def _distort(
    views: Tensor, labels: Tensor, net: Encoder, options: Options, seed: int, step: int, training: Training, rank: int
) -> tuple[Tensor, Tensor, float]:
    """Return (views after RandAugment, erasing and mixing, the other label of each, the share of its own label)."""
    by = {"seed": seed, "step": step, "first": rank * len(views)}
    if options.rand_augment:
        views = rand_augment(views, magnitude=options.rand_augment, mean=net.mean, batch=training.batch_size, **by)
    if options.erasing:
        views = erase(views, probability=options.erasing, mean=net.mean, std=net.std, **by)
    if not (options.mixup or options.cutmix):
        return views, labels, 1.0
    drawn = draw_mixing(mixup=options.mixup, cutmix=options.cutmix, switch=options.mix_switch, seed=seed, step=step)
    return mix(views, labels, drawn)


def _optimizers(net: Encoder, head: nn.Linear, options: Options, peak: float) -> list[torch.optim.Optimizer]:
    """Return optimizers of the weights with weight decay, and of tokens and positions without."""
    scales = rate_scales(net.backbone, options.layer_decay)
    undecayed = {p: None for name, p in net.backbone.named_parameters() if name.endswith(_UNDECAYED)}
    decayed = [p for p in [*net.parameters(), *head.parameters()] if p not in undecayed]
    parts = ((decayed, options.weight_decay), ([p for p in undecayed if p.requires_grad], 0.0))
    return [build_optimizer(options, peak, p, weight_decay=decay, rate_scales=scales) for p, decay in parts if p]
