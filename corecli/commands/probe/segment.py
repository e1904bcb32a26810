"""Masks predicted by a linear layer on an encoder's patches: training it, and scoring it by windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError
from corecli.base.rng import numpy_generator
from corecli.commands.parts.inputs import num_workers
from corecli.commands.probe.modes import num_seeds
from corecli.commands.probe.options import of_mode
from corecli.commands.probe.problem import ClassSpace
from corecli.commands.probe.report import Result
from corecli.commands.probe.sets import Task, open_masks
from corecli.commands.probe.training import check_finite
from corecli.data.masks import NOT_COUNTED, MaskedImages, random_window
from corecli.data.order import Order
from corecli.engine import optim
from corecli.engine.dist import World, average_gradients, sum_over_ranks
from corecli.engine.precision import autocast, place
from corecli.engine.progress import Progress
from corecli.engine.schedule import learning_rate
from corecli.metrics.parts.scores import student_interval
from corecli.metrics.parts.segmentation import Overlap, count_pixels, overlap
from corecli.nets.batchnorm import synchronize_batchnorm
from corecli.nets.encoder import Encoder
from corecli.nets.patches import Segmenter, slide
from corecli.views import augment
from corecli.views.policies import Policy

if TYPE_CHECKING:
    from corecli.commands.probe.options import Config

_SCALES = (0.5, 2.0)  # of an image before a window is cut from it
# mmsegmentation distorts colors by these amounts, each of the four with probability 1/2; here all at once or none.
_COLORS = Policy(flip=0.5, jitter=0.5, brightness=32 / 256, contrast=0.5, saturation=0.5, hue=18 / 360)

T = TypeVar("T")
R = TypeVar("R")


def segment(config: Config, task: Task, encoder: Encoder, world: World) -> list[Result]:
    """Train a layer for each seed and score it on all test sets of a task; all ranks take part. Errors: DataError."""
    train = open_masks(config, task, task.train)
    num_classes = config.num_classes or _count_classes(config, train, task.train.spec)
    seeds = range(config.seed, config.seed + num_seeds(config))
    nets = [train_segmenter(config, train, encoder, num_classes, seed, world) for seed in seeds]
    results = []
    for one in task.tests:
        test = open_masks(config, task, one)
        counts = [count_predictions(config, test, net, num_classes, world) for net in nets]
        scores = [overlap(of_seed) for of_seed in counts]
        by_seed = tuple(found.miou for found in scores)
        results.append(
            Result(
                task=task,
                of=one,
                space=ClassSpace(labels=torch.arange(num_classes), names=()),
                values={name: _mean(scores, name) for name in ("miou", "mean_accuracy", "pixel_accuracy")},
                per_class=_by_class(scores),
                intervals={"miou_interval_seeds": student_interval(by_seed)},
                by_seed={"miou_by_seed": by_seed},
                settings=(),
                num_train=len(train),
                num_test=len(test),
                num_classes=num_classes,
                confusion=torch.stack(counts).double().mean(0).tolist(),
            )
        )
    return results


def train_segmenter(
    config: Config, train: MaskedImages, encoder: Encoder, num_classes: int, seed: int, world: World
) -> Segmenter:
    """A layer trained on windows of images that are scaled, mirrored and distorted at random, by (seed, step)."""
    size = min(of_mode(config, "train_batch"), len(train))
    size -= size % world.size
    if not size:
        raise DataError(f"{len(train)} images are fewer than {world.size} processes")
    steps, device = of_mode(config, "steps"), world.device
    net = place(Segmenter(encoder, num_classes, seed=seed), device)
    net.head = synchronize_batchnorm(net.head, device)
    net.train()
    lr, decay = of_mode(config, "lr"), of_mode(config, "weight_decay")
    optimizer = optim.build_optimizer("adamw", net.head.parameters(), lr=lr, weight_decay=decay, exclude_1d=False)
    loss = torch.zeros(())
    with Progress("probe segment", total=steps, shown=world.is_main and not config.quiet) as progress:
        for step, (views, masks) in enumerate(_views(config, train, num_classes, seed, size, world)):
            with autocast(config.precision, device):
                logits = net(views)
            counted = sum_over_ranks((masks != NOT_COUNTED).sum()).clamp(min=1)
            total = F.cross_entropy(logits.float(), masks, ignore_index=NOT_COUNTED, reduction="sum")
            loss = total * world.size / counted
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(net.head.parameters(), world)
            warmup = of_mode(config, "warmup_steps")
            rate = learning_rate(step, peak=lr, total_steps=steps, warmup_steps=warmup, shape="linear")
            optim.set_learning_rate(optimizer, rate)
            optimizer.step()
            progress.advance(images=size)
    check_finite(loss)
    return net.eval()


def count_predictions(config: Config, test: MaskedImages, net: Segmenter, num_classes: int, world: World) -> Tensor:
    """The confusion matrix of all pixels of a set, int64 [C, C], from windows over its images as large as they are."""
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    crop, stride = of_mode(config, "crop_px"), of_mode(config, "stride_px")
    shown = world.is_main and not config.quiet
    with Progress("probe segment, test", total=len(test), shown=shown) as progress, torch.no_grad():
        rows = range(world.rank, len(test), world.size)
        for image, mask in _ahead(lambda row: _read(test, row, num_classes), rows, config):
            x = augment.to_float(torch.from_numpy(image).to(world.device))
            with autocast(config.precision, world.device):
                found = slide(net, x, crop=crop, stride=stride).argmax(0).cpu()
            counts += count_pixels(torch.from_numpy(mask), found, num_classes)
            progress.advance(world.size, images=world.size)
    return sum_over_ranks(counts)


def _views(
    config: Config, train: MaskedImages, num_classes: int, seed: int, batch: int, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's windows of every step, float [b, 3, S, S] in [0, 1], and their masks, int64 [b, S, S]."""
    steps, side = of_mode(config, "steps"), of_mode(config, "crop_px")
    order = Order(np.arange(len(train)), segments=(len(train),), batch_size=batch, seed=seed, total_steps=steps)
    own = slice(world.rank * batch // world.size, (world.rank + 1) * batch // world.size)
    rows = (order.batch(step)[own] for step in range(steps))

    def read(job: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        draws = numpy_generator(seed, "segment", job[0]).random((batch, 3))[own]
        windows = []
        for row, (scale, *where) in zip(job[1].tolist(), draws.tolist(), strict=True):
            image, mask = _read(train, row, num_classes)
            scale = _SCALES[0] + (_SCALES[1] - _SCALES[0]) * scale
            windows.append(random_window(image, mask, scale=scale, place=(where[0], where[1]), size=side))
        images, masks = zip(*windows, strict=True)
        return np.stack(images), np.stack(masks).astype(np.int64)

    for step, (images, masks) in enumerate(_ahead(read, enumerate(rows), config)):
        drawn = augment.draw(_COLORS, seed=seed, step=step, view=0, batch=batch, image_size=(side, side))[own]
        masks = np.where(drawn.flip[:, None, None], masks[:, :, ::-1], masks)
        views = augment.augment(torch.from_numpy(images).to(world.device), drawn)
        yield views, torch.from_numpy(masks).to(world.device)


def _read(data: MaskedImages, row: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = data.read(row)
    if mask.max() >= num_classes:
        reason = f"a pixel of class {mask.max()}, and there are {num_classes}, from 0 on"
        raise DataError(reason, where=data.mask_name(row), hint="--num-classes says how many; 255 is no class")
    return image, mask


def _count_classes(config: Config, train: MaskedImages, spec: str) -> int:
    """One more than the highest class in the masks. Errors: DataError below two."""
    num = 1 + max(_ahead(lambda row: int(train.read_mask(row).max()), range(len(train)), config))
    if num < 2:
        raise DataError("its masks are of one class", where=spec, hint="a probe learns to tell two or more apart")
    return num


def _ahead(read: Callable[[T], R], items: Iterable[T], config: Config) -> Iterator[R]:
    """What `read` makes of each, in order, some of it ahead in threads."""
    workers = num_workers(config.workers)
    threads = 4 if workers == "auto" else max(1, workers)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _mean(scores: list[Overlap], name: str) -> float:
    return float(np.mean([getattr(found, name) for found in scores]))


def _by_class(scores: list[Overlap]) -> dict[str, float]:
    """The intersection over union of each class that is there or predicted."""
    iou = torch.stack([found.iou for found in scores]).nanmean(0)
    return {str(number): value for number, value in enumerate(iou.tolist()) if value == value}
