"""What there is to learn and to answer: the labels of the sets of a task, joined by class, and their features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from corecli.base.errors import DataError, about
from corecli.base.rng import numpy_generator
from corecli.commands.parts.inputs import num_workers, open_images
from corecli.commands.probe.labels import ClassLists, read_class_lists
from corecli.commands.probe.sets import check_classes, is_table
from corecli.data.features import FeatureTable, load_features
from corecli.data.imageset import ImageSet
from corecli.data.loader import read_batches
from corecli.data.order import sequential_batches
from corecli.engine.dist import World, sum_over_ranks
from corecli.engine.precision import autocast
from corecli.engine.progress import Progress
from corecli.metrics.parts.classes import index_classes
from corecli.nets.encoder import Encoder

if TYPE_CHECKING:
    from corecli.commands.probe.options import Config
    from corecli.commands.probe.sets import Task


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """The labeled rows of a set: their numbers in it, keys, labels and the names of the classes.

    labels: int64 [N]; or, with --labels, int8 [N, C]: of each class 1 yes, 0 no, -1 passed over.
    """

    spec: str
    rows: np.ndarray
    keys: list[str]
    labels: torch.Tensor
    class_names: tuple[str, ...]
    table: FeatureTable | None

    def take(self, indices: torch.Tensor) -> Labeled:
        """Some of the rows."""
        keys = [self.keys[i] for i in indices.tolist()]
        return replace(self, rows=self.rows[indices.numpy()], keys=keys, labels=self.labels[indices])


@dataclass(frozen=True, kw_only=True)
class ClassSpace:
    """The classes a training set teaches, numbered 0..C-1: the labels they have there, int64 [C], and their names."""

    labels: torch.Tensor
    names: tuple[str, ...]

    @staticmethod
    def of(train: Labeled) -> ClassSpace:
        """The classes that occur in a training set; all of its names are kept, by label. Errors: DataError."""
        if train.labels.ndim == 2:
            without = (~(train.labels > 0).any(0)).nonzero().flatten().tolist()
            if without:
                raise DataError(f"has no image of the class {train.class_names[without[0]]}", where=train.spec)
            return ClassSpace(labels=torch.arange(train.labels.shape[1]), names=train.class_names)
        return ClassSpace(labels=train.labels.unique(), names=train.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, number: int) -> str:
        """The name of a class, or its label where there are no names."""
        label = int(self.labels[number])
        return self.names[label] if self.names else str(label)

    def numbers(self, other: Labeled) -> torch.Tensor:
        """The labels of another set, or of the training set itself, as numbers in 0..C-1, joined by name.

        Errors: DataError for a class that the training set does not have.
        """
        labels = other.labels
        if labels.ndim == 2:  # of one file, numbered alike
            return labels
        if self.names and other.class_names and other.class_names != self.names:
            used = sorted({other.class_names[i] for i in labels.unique().tolist()})
            unknown = [name for name in used if name not in self.names]
            if unknown:
                reason = f"classes that the training set has not: {', '.join(unknown[:5])}"
                raise DataError(reason, where=other.spec, hint="train on all classes of the test set")
            own = {name: label for label, name in enumerate(self.names)}
            labels = torch.tensor([own.get(name, -1) for name in other.class_names])[labels]
        with about(other.spec):
            return index_classes(self.labels, labels)[2]

    def shared_with(self, test: Labeled) -> torch.Tensor | None:
        """bool [C]: the classes a test set has names for; None when those are all, or names are not known."""
        if not (self.names and test.class_names):
            return None
        shared = torch.tensor([self.name(c) in test.class_names for c in range(len(self))])
        return None if bool(shared.all()) else shared


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task with its labels: what there is to learn, and to answer.

    numbers: the classes of the N training rows and, after them, of --val's, int64 or, with --labels, int8 [.., C];
    answers: those of each test set; subsets: for each seed the training rows it may use, int64 places in 0..N-1.
    """

    task: Task
    space: ClassSpace
    train: Labeled
    val: Labeled | None
    tests: tuple[Labeled, ...]
    numbers: torch.Tensor
    answers: tuple[torch.Tensor, ...]
    subsets: tuple[torch.Tensor, ...]


def read_problem(config: Config, task: Task, encoder: Encoder | None, num_seeds: int) -> Problem:
    """The labels of all sets of a task; no image is read. Errors: DataError."""
    lists = None if config.labels is None else read_class_lists(config.labels)
    train = read_labels(config, task.train.spec, lists, least=2)
    val = None if task.val is None else read_labels(config, task.val.spec, lists, least=1)
    tests = tuple(read_labels(config, one.spec, lists, least=1) for one in task.tests)
    space = ClassSpace.of(train)
    for other in (*([val] if val else []), *tests):
        _check_dimensions(_num_dimensions(config, other, encoder), _num_dimensions(config, train, encoder), other.spec)
    numbers = space.numbers(train)
    with about(task.train.spec):
        subsets = draw_subsets(config, numbers, num_seeds)
    used = torch.cat(subsets).unique()  # of a small part of a large set, only that part is read
    if len(used) < len(numbers):
        train, numbers = train.take(used), numbers[used]
        subsets = tuple(torch.searchsorted(used, rows) for rows in subsets)
    held = [] if val is None else [space.numbers(val)]
    return Problem(
        task=task,
        space=space,
        train=train,
        val=val,
        tests=tests,
        numbers=torch.cat([numbers, *held]),
        answers=tuple(space.numbers(test) for test in tests),
        subsets=subsets,
    )


def read_labels(config: Config, spec: str, lists: ClassLists | None, *, least: int) -> Labeled:
    """The labeled rows of a table or an image set; unlabeled ones are left out. Errors: DataError."""
    table = load_features(Path(spec)) if is_table(spec) else None
    if table is not None:
        keys, labels, names = table.keys, table.labels, tuple(table.header.get("class_names", ()))
    else:
        data = open_images(spec, config)
        keys, labels, names = data.rows.keys, data.rows.labels, data.class_names
    if lists is None:
        check_classes(labels, spec, least=least)
        known = np.flatnonzero(labels >= 0)
        labels = labels[known]
    else:
        known = np.array([row for row, key in enumerate(keys) if key in lists.own], dtype=np.int64)
        if not len(known):
            raise DataError(f"{config.labels} has none of its keys, such as {keys[0]!r}", where=spec)
        labels, names = lists.targets([keys[row] for row in known]), lists.names
    return Labeled(
        spec=spec,
        rows=known,
        keys=[keys[row] for row in known.tolist()],
        labels=torch.from_numpy(labels),
        class_names=names,
        table=table,
    )


def read_features(
    config: Config, labeled: Labeled, encoder: Encoder | None, world: World, *, images: ImageSet | None = None
) -> torch.Tensor:
    """Features [N, D] of labeled rows, on the device; images are dealt out to the ranks by batch and summed over them.

    `images`, if given, are read in place of the set's own.
    Errors: DataError for images that cannot be read, and for features with NaN or infinity.
    """
    if labeled.table is not None:
        return labeled.table.features[torch.from_numpy(labeled.rows)].to(world.device)
    assert encoder is not None
    data = images or open_images(labeled.spec, config)
    num = len(labeled.rows)
    features = torch.zeros(num, _num_dimensions(config, labeled, encoder))
    with Progress(f"probe {labeled.spec}", total=num, shown=world.is_main and not config.quiet) as progress:
        places = list(sequential_batches(num, config.batch_size, rank=world.rank, world_size=world.size))
        batches = (labeled.rows[place] for place in places)
        read = read_batches(data, batches, device=world.device, workers=num_workers(config.workers))
        for place, (batch, _) in zip(places, read, strict=True):
            with autocast(config.precision, world.device):
                features[place] = encoder.encode(batch, config.layer).cpu()
            progress.advance(len(place) * world.size, images=len(place) * world.size)
    features = sum_over_ranks(features) if world.size > 1 else features
    if not features.isfinite().all():
        raise DataError("features contain NaN or infinity", where=labeled.spec)
    return features.to(world.device)


def draw_subsets(config: Config, numbers: torch.Tensor, num_seeds: int) -> tuple[torch.Tensor, ...]:
    """For each seed sorted places of the training rows it may use: all, or --shots or --fraction of every class."""
    if config.shots is None and config.fraction is None:
        return (torch.arange(len(numbers)),) * num_seeds
    counts = numbers.bincount()
    wanted = counts.clone().fill_(config.shots or 0)
    if config.fraction is not None:
        wanted = (config.fraction * counts).round().long().clamp(min=1)
    if (wanted > counts).any():
        least = int(counts.min())
        raise DataError(f"a class has {least} images, fewer than --shots {config.shots}", hint=f"--shots {least} works")
    subsets = []
    for seed in range(config.seed, config.seed + num_seeds):
        order = torch.from_numpy(numpy_generator(seed, "probe", "subset").permutation(len(numbers)))
        by_class = order[numbers[order].argsort(stable=True)]
        place = torch.arange(len(numbers)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        subsets.append(by_class[place < wanted.repeat_interleave(counts)].sort().values)
    return tuple(subsets)


def _num_dimensions(config: Config, labeled: Labeled, encoder: Encoder | None) -> int:
    if labeled.table is not None:
        return labeled.table.features.shape[1]
    assert encoder is not None
    return encoder.num_features if config.layer == "backbone" else encoder.projector_dim or 0


def _check_dimensions(found: int, of_train: int, where: str) -> None:
    """Errors: DataError when --force has let features of two lengths pass."""
    if found != of_train:
        reason = f"features of {found} dimensions, the training set's have {of_train}"
        raise DataError(reason, where=where, hint="extract both with one encoder and layer")
