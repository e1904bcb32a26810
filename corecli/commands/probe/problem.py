"""The classification problem of a task: its labels, joined by class, and the rows that each seed trains on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corecli.base.errors import DataError, about
from corecli.base.rng import numpy_generator
from corecli.commands.probe.labels import ClassLists
from corecli.commands.probe.reader import Labeled, Reader
from corecli.commands.probe.sets import Task
from corecli.metrics.parts.classes import index_classes


@dataclass(frozen=True, kw_only=True)
class ClassSpace:
    """The classes of a training set, numbered 0..C-1: the label of each there, int64 [C], and the names by label."""

    labels: torch.Tensor
    names: tuple[str, ...]

    @staticmethod
    def of(train: Labeled) -> ClassSpace:
        """Return the classes that occur in a training set. Errors: DataError if a class of --labels has no image."""
        if train.labels.ndim == 2:
            without = (~(train.labels > 0).any(0)).nonzero().flatten().tolist()
            if without:
                raise DataError(f"has no image of class {train.class_names[without[0]]}", where=train.spec)
            return ClassSpace(labels=torch.arange(train.labels.shape[1]), names=train.class_names)
        return ClassSpace(labels=train.labels.unique(), names=train.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, number: int) -> str:
        """Return the name of a class, or its label if the classes have no names."""
        label = int(self.labels[number])
        return self.names[label] if self.names else str(label)

    def numbers(self, other: Labeled) -> torch.Tensor:
        """Return the labels of the training set or another set as class numbers, joined by name.

        Errors: DataError if the set has a class that the training set does not have.
        """
        labels = other.labels
        if labels.ndim == 2:  # numbered by the file of --labels
            return labels
        if self.names and other.class_names and other.class_names != self.names:
            used = sorted({other.class_names[i] for i in labels.unique().tolist()})
            unknown = [name for name in used if name not in self.names]
            if unknown:
                reason = f"has classes that the training set does not have: {', '.join(unknown[:5])}"
                raise DataError(reason, where=other.spec, hint="train on all classes of the test set")
            own = {name: label for label, name in enumerate(self.names)}
            labels = torch.tensor([own.get(name, -1) for name in other.class_names])[labels]
        with about(other.spec):
            return index_classes(self.labels, labels)[2]

    def shared_with(self, test: Labeled) -> torch.Tensor | None:
        """Return bool [C], the classes that a test set has names for; None if it has all, or names are not known."""
        if not (self.names and test.class_names):
            return None
        shared = torch.tensor([self.name(c) in test.class_names for c in range(len(self))])
        return None if bool(shared.all()) else shared


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task with its labels.

    numbers: classes of the N training rows and, after them, of the rows of --val: int64 [N + M], or with --labels
    int8 [N + M, C]; answers: the same for each test set; subsets: for each seed the training rows it may use, int64
    positions in 0..N-1; is_drawn: whether these differ between seeds.
    """

    task: Task
    space: ClassSpace
    train: Labeled
    val: Labeled | None
    tests: tuple[Labeled, ...]
    numbers: torch.Tensor
    answers: tuple[torch.Tensor, ...]
    subsets: tuple[torch.Tensor, ...]
    is_drawn: bool


def read_problem(
    task: Task,
    reader: Reader,
    *,
    seeds: range,
    lists: ClassLists | None = None,
    shots: int | None = None,
    fraction: float | None = None,
) -> Problem:
    """Read the labels of all sets of a task, without reading images.

    lists: classes of images with several; shots, fraction: as in `draw_subsets`. Errors: DataError.
    """
    train = reader.labeled(task.train.spec, lists, least=2)
    val = None if task.val is None else reader.labeled(task.val.spec, lists, least=1)
    tests = tuple(reader.labeled(one.spec, lists, least=1) for one in task.tests)
    space = ClassSpace.of(train)
    for other in (*([val] if val else []), *tests):
        _check_dimensions(reader.num_dimensions(other), reader.num_dimensions(train), other.spec)
    numbers = space.numbers(train)
    with about(task.train.spec):
        subsets = draw_subsets(numbers, seeds, shots=shots, fraction=fraction)
    used = torch.cat(subsets).unique()  # only these images are read
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
        is_drawn=shots is not None or fraction is not None,
    )


def draw_subsets(
    numbers: torch.Tensor, seeds: range, *, shots: int | None = None, fraction: float | None = None
) -> tuple[torch.Tensor, ...]:
    """Return, for each seed, the training rows it may use, as sorted positions.

    These are all rows, or `shots` images of every class, or the given fraction of every class.
    Errors: DataError if a class has fewer images than `shots`.
    """
    if shots is None and fraction is None:
        return (torch.arange(len(numbers)),) * len(seeds)
    counts = numbers.bincount()
    wanted = counts.clone().fill_(shots or 0)
    if fraction is not None:
        wanted = (fraction * counts).round().long().clamp(min=1)
    if (wanted > counts).any():
        least = int(counts.min())
        raise DataError(f"a class has {least} images, fewer than --shots {shots}", hint=f"--shots {least} works")
    subsets = []
    for seed in seeds:
        order = torch.from_numpy(numpy_generator(seed, "probe", "subset").permutation(len(numbers)))
        by_class = order[numbers[order].argsort(stable=True)]
        place = torch.arange(len(numbers)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        subsets.append(by_class[place < wanted.repeat_interleave(counts)].sort().values)
    return tuple(subsets)


def _check_dimensions(found: int, of_train: int, where: str) -> None:
    """Raise DataError if --force has let features of two lengths pass."""
    if found != of_train:
        reason = f"features have {found} dimensions, those of the training set {of_train}"
        raise DataError(reason, where=where, hint="extract both with one encoder and layer")
