"""Segmentation: BatchNorm and a linear layer on the frozen encoder's patches, enlarged bilinearly (DINOv2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator
from corecli.commands.probe.segmentation import Context, Predict, ahead, read_pair
from corecli.commands.probe.training import check_finite
from corecli.data.masks import NOT_COUNTED, random_window
from corecli.data.order import Order
from corecli.engine import optim
from corecli.engine.dist import World, average_gradients, sum_over_ranks
from corecli.engine.precision import autocast, place
from corecli.engine.progress import Progress
from corecli.engine.schedule import learning_rate
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.nets.patches import Segmenter, slide
from corecli.views import augment
from corecli.views.policies import Policy

NEEDS, NUM_SEEDS, USES_VAL = "masks", 1, False

_SCALES = (0.5, 2.0)  # range of the factor that resizes an image before a window is cut from it
# mmsegmentation distorts colors by these amounts, each of the four with probability 1/2; here all at once or none.
_COLORS = Policy(flip=0.5, jitter=0.5, brightness=32 / 256, contrast=0.5, saturation=0.5, hue=18 / 360)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of segment: by default the settings of DINOv2's program for its linear head."""

    train_masks: tuple[str, ...] = ()
    test_masks: tuple[str, ...] = ()
    num_classes: int | None = None
    reduce_zero_label: bool = False
    steps: int = 40_000
    warmup_steps: int = 1500
    train_batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    crop_px: int = 512
    stride_px: int = 341


def fit(context: Context, *, options: Options, seed: int) -> Predict:
    """Train a layer, and return its mean logits over overlapping windows of an image of any size."""
    return partial(slide, train(context, options, seed), crop=options.crop_px, stride=options.stride_px)


def train(context: Context, options: Options, seed: int) -> Segmenter:
    """Train a layer on windows of images that are scaled, mirrored and distorted at random, by (seed, step)."""
    reader, num_classes = context.reader, context.num_classes
    world, device, size = reader.world, reader.world.device, _batch_size(options, len(context.train), reader.world)
    net = place(Segmenter(reader.net, num_classes, seed=seed), device)
    net.head = synchronize_batchnorm(net.head, device)
    net.train()
    optimizer = optim.build_optimizer(
        "adamw", net.head.parameters(), lr=options.lr, weight_decay=options.weight_decay, exclude_1d=False
    )
    loss = torch.zeros(())
    with Progress("probe segment", total=options.steps, shown=reader.shown) as progress:
        for step, (views, masks) in enumerate(_views(context, options, seed, size)):
            with autocast(reader.precision, device):
                logits = net(views)
            counted = sum_over_ranks((masks != NOT_COUNTED).sum()).clamp(min=1)
            total = F.cross_entropy(logits.float(), masks, ignore_index=NOT_COUNTED, reduction="sum")
            loss = total * world.size / counted
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(net.head.parameters(), world)
            optim.set_learning_rate(optimizer, _rate(options, step))
            optimizer.step()
            progress.advance(images=size)
    check_finite(loss)
    return net.eval()


def _batch_size(options: Options, num_images: int, world: World) -> int:
    size = min(options.train_batch, num_images)
    size -= size % world.size
    if not size:
        raise DataError(f"{num_images} images are fewer than {world.size} processes")
    return size


def _rate(options: Options, step: int) -> float:
    return learning_rate(
        step, peak=options.lr, total_steps=options.steps, warmup_steps=options.warmup_steps, shape="linear"
    )


def _views(context: Context, options: Options, seed: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's windows of each step, float [b, 3, S, S] in [0, 1], and their masks, int64 [b, S, S]."""
    world, side, num = context.reader.world, options.crop_px, len(context.train)
    order = Order(np.arange(num), segments=(num,), batch_size=batch, seed=seed, total_steps=options.steps)
    own = slice(world.rank * batch // world.size, (world.rank + 1) * batch // world.size)
    rows = (order.batch(step)[own] for step in range(options.steps))

    def read(job: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        draws = numpy_generator(seed, "segment", job[0]).random((batch, 3))[own]
        windows = []
        for row, (scale, *where) in zip(job[1].tolist(), draws.tolist(), strict=True):
            image, mask = read_pair(context.train, row, context.num_classes)
            scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * scale
            windows.append(random_window(image, mask, scale=scale, place=(where[0], where[1]), size=side))
        images, masks = zip(*windows, strict=True)
        return np.stack(images), np.stack(masks).astype(np.int64)

    for step, (images, masks) in enumerate(ahead(read, enumerate(rows), context.reader.workers)):
        drawn = augment.draw(_COLORS, seed=seed, step=step, view=0, batch=batch, image_size=(side, side))[own]
        masks = np.where(drawn.flip[:, None, None], masks[:, :, ::-1], masks)
        views = augment.augment(torch.from_numpy(images).to(world.device), drawn)
        yield views, torch.from_numpy(masks).to(world.device)
