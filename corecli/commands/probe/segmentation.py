"""Fit the segmenters of a task and score them on its test sets: intersection over union, from counts of pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import DataError
from corecli.commands.probe.problem import ClassSpace
from corecli.commands.probe.reader import Reader
from corecli.commands.probe.report import Result
from corecli.commands.probe.sets import NamedSet, Task
from corecli.data.loader import Workers
from corecli.data.masks import MaskedImages
from corecli.engine.dist import sum_over_ranks
from corecli.engine.precision import autocast
from corecli.engine.progress import Progress
from corecli.metrics.parts.scores import student_interval
from corecli.metrics.parts.segmentation import Overlap, count_pixels, overlap
from corecli.views import augment

Predict = Callable[[Tensor], Tensor]  # one image, float [3, H, W] in [0, 1] -> logits of its pixels [C, H, W]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a mode that needs masks gets: the training images with their masks, and the encoder."""

    train: MaskedImages
    num_classes: int
    reader: Reader


def score_masks(
    mode: ModuleType,
    options: Any,
    task: Task,
    reader: Reader,
    *,
    open_masks: Callable[[NamedSet], MaskedImages],
    seeds: range,
    num_classes: int | None,
) -> list[Result]:
    """Fit for each seed and score on all test sets of a task; all processes take part.

    num_classes: None counts the classes in the training masks. Errors: DataError.
    """
    train = open_masks(task.train)
    num_classes = num_classes or _count_classes(train, task.train.spec, reader.workers)
    context = Context(train=train, num_classes=num_classes, reader=reader)
    fits = [mode.fit(context, options=options, seed=seed) for seed in seeds]
    results = []
    for one in task.tests:
        test = open_masks(one)
        counts = [count_predictions(test, predict, context) for predict in fits]
        results.append(_result(task, one, counts, num_train=len(train), num_test=len(test)))
    return results


def count_predictions(test: MaskedImages, predict: Predict, context: Context) -> Tensor:
    """Return the confusion matrix of all pixels of a set, int64 [C, C], summed over the processes."""
    reader, num_classes = context.reader, context.num_classes
    world = reader.world
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    with Progress("probe segment, test", total=len(test), shown=reader.shown) as progress, torch.no_grad():
        rows = range(world.rank, len(test), world.size)
        for image, mask in ahead(lambda row: read_pair(test, row, num_classes), rows, reader.workers):
            x = augment.to_float(torch.from_numpy(image).to(world.device))
            with autocast(reader.precision, world.device):
                found = predict(x).argmax(0).cpu()
            counts += count_pixels(torch.from_numpy(mask), found, num_classes)
            progress.advance(world.size, images=world.size)
    return sum_over_ranks(counts)


def read_pair(data: MaskedImages, row: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, uint8 [3, H, W], and its mask, int32 [H, W]. Errors: DataError for an unknown class."""
    image, mask = data.read(row)
    if mask.max() >= num_classes:
        reason = f"a pixel has class {mask.max()}, but there are {num_classes} classes, from 0 on"
        raise DataError(reason, where=data.mask_name(row), hint="give --num-classes; 255 is no class")
    return image, mask


def ahead(read: Callable[[T], R], items: Iterable[T], workers: Workers) -> Iterator[R]:
    """Yield `read(item)` for each item in order, some of them ahead of their use, in threads."""
    threads = 4 if workers == "auto" else max(1, workers)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _count_classes(train: MaskedImages, spec: str, workers: Workers) -> int:
    """Return one more than the highest class in the masks. Errors: DataError if there are fewer than two."""
    num = 1 + max(ahead(lambda row: int(train.read_mask(row).max()), range(len(train)), workers))
    if num < 2:
        raise DataError("its masks have fewer than two classes", where=spec, hint="a probe needs at least two")
    return num


def _result(task: Task, of: NamedSet, counts: list[Tensor], *, num_train: int, num_test: int) -> Result:
    """Return the scores of a test set from the confusion matrix of each seed."""
    scores, num_classes = [overlap(of_seed) for of_seed in counts], len(counts[0])
    by_seed = tuple(found.miou for found in scores)
    return Result(
        task=task,
        of=of,
        space=ClassSpace(labels=torch.arange(num_classes), names=()),
        values={name: _mean(scores, name) for name in ("miou", "mean_accuracy", "pixel_accuracy")},
        per_class=_by_class(scores),
        intervals={"miou_interval_seeds": student_interval(by_seed)},
        by_seed={"miou_by_seed": by_seed},
        settings=(),
        num_train=num_train,
        num_test=num_test,
        num_classes=num_classes,
        confusion=torch.stack(counts).double().mean(0).tolist(),
    )


def _mean(scores: list[Overlap], name: str) -> float:
    return float(np.mean([getattr(found, name) for found in scores]))


def _by_class(scores: list[Overlap]) -> dict[str, float]:
    """Return the intersection over union of each class that occurs or is predicted."""
    iou = torch.stack([found.iou for found in scores]).nanmean(0)
    return {str(number): value for number, value in enumerate(iou.tolist()) if value == value}
