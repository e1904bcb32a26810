"""The sets a probe is trained and scored on: which belong together, and their features and labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.checkpoint import read_header
from corecli.base.errors import DataError, UsageError, about
from corecli.base.files import sniff
from corecli.base.rng import numpy_generator
from corecli.commands import _inputs

if TYPE_CHECKING:
    import torch

    from corecli.commands.probe import Config
    from corecli.data.features import FeatureTable
    from corecli.engine.dist import World
    from corecli.nets.encoder import Encoder

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A set as written on the command line, `NAME=SET` or `SET`."""

    name: str | None
    spec: str

    @property
    def shown(self) -> str:
        """What stands for it in a table."""
        return self.name or self.spec


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training set, the set its setting is chosen on if not a part of it, and the sets it is scored on."""

    train: NamedSet
    val: NamedSet | None
    tests: tuple[NamedSet, ...]

    @property
    def sets(self) -> tuple[NamedSet, ...]:
        """All of them, the training set first."""
        return (self.train, *([self.val] if self.val else []), *self.tests)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labelled rows of a set: their numbers in it, keys, labels int64 [N], and the names of the classes."""

    spec: str
    rows: np.ndarray
    keys: list[str]
    labels: torch.Tensor
    class_names: tuple[str, ...]
    table: FeatureTable | None

    def take(self, indices: torch.Tensor) -> Labelled:
        """Some of the rows."""
        keys = [self.keys[i] for i in indices.tolist()]
        return replace(self, rows=self.rows[indices.numpy()], keys=keys, labels=self.labels[indices])


def named(text: str) -> NamedSet:
    """`NAME=SET`, or a set without a name; a path that exists is one whole, whatever it contains."""
    name, _, spec = text.partition("=")
    if spec and _NAME.fullmatch(name) and not Path(text).exists():
        return NamedSet(name=name, spec=spec)
    return NamedSet(name=None, spec=text)


def tasks(train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> tuple[Task, ...]:
    """Which sets belong together: a test set with the training set of its name, else with the first one.

    Errors: UsageError for names that repeat or lead nowhere.
    """
    trains, vals, tests = ([named(text) for text in texts] for texts in (train, val, test))
    for option, sets in (("--train", trains), ("--val", vals), ("--test", tests)):
        _check_distinct(option, [one.shown if option == "--test" else one.name for one in sets])
    held = {_owner(one, trains): one for one in vals}
    strangers = [one for one in vals if one.name not in (None, *(own.name for own in trains))]
    if strangers or len(held) < len(vals):
        told = strangers[0].shown if strangers else trains[0].shown
        raise UsageError(f"--val {told} belongs to no --train of its own", hint="name it as its training set")
    found = []
    for own in trains:
        scored = tuple(one for one in tests if _owner(one, trains) is own)
        if not scored:
            raise UsageError(f"--train {own.shown} has no test", hint=f"give --test {own.name or 'NAME'}=SET")
        found.append(Task(train=own, val=held.get(own), tests=scored))
    return tuple(found)


def _owner(one: NamedSet, trains: Sequence[NamedSet]) -> NamedSet:
    return next((own for own in trains if own.name == one.name), trains[0])


def _check_distinct(option: str, names: Sequence[str | None]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{option} has two sets {'without a name' if name is None else f'called {name}'}")


def is_table(spec: str) -> bool:
    """Whether a set is a feature table rather than images."""
    header = _header(spec)
    return header is not None and header["kind"] == "features"


def _header(spec: str) -> dict[str, Any] | None:
    path = Path(spec)
    return read_header(path) if path.exists() and sniff(path) in ("safetensors", "torch") else None


def check_task(config: Config, task: Task) -> None:
    """Errors: as reading its sets would raise, as far as they show without torch."""
    for one in task.sets:
        if not is_table(one.spec):
            data = _inputs.open_images(one.spec, config)
            if config.encoder is None:
                raise UsageError("an image set needs --encoder", where=one.spec)
            check_classes(data.rows.labels, one.spec, least=2 if one is task.train else 1)
    if not config.force:
        for one in task.sets[1:]:
            _check_spaces(config, task.train.spec, one.spec)


def check_classes(labels: np.ndarray, spec: str, *, least: int) -> None:
    """Errors: DataError unless the known labels are of `least` classes or more."""
    num = len(np.unique(labels[labels >= 0]))
    if num == 0:
        raise DataError("has no labels to score on", where=spec, hint="class sub-folders give labels")
    if num < least:
        raise DataError("all its labels are of one class", where=spec, hint="a probe learns to tell two or more apart")


def _check_spaces(config: Config, train: str, test: str) -> None:
    """Errors: DataError when train and test are known to be features of two encoders, or of two layers."""
    encoder = _header(config.encoder) if config.encoder else None
    spaces = []
    for spec in (train, test):
        header = _header(spec) if is_table(spec) else None
        if header is not None:
            spaces.append((header.get("encoder"), header.get("layer")))
        elif encoder is not None:
            spaces.append((encoder["fingerprint"], config.layer))
    if len(spaces) == 2 and spaces[0] != spaces[1]:
        told = [f"{layer} of {str(fingerprint)[:12]}" for fingerprint, layer in spaces]
        hint = "extract both with one encoder and layer; --force accepts it"
        raise DataError(f"features are {told[1]}, those of {train} {told[0]}", where=test, hint=hint)


def read_labels(config: Config, spec: str, *, least: int) -> Labelled:
    """The labelled rows of a table or an image set; unlabelled ones are left out. Errors: DataError."""
    import torch

    from corecli.data.features import load_features

    table = load_features(Path(spec)) if is_table(spec) else None
    if table is not None:
        keys, labels, names = table.keys, table.labels, tuple(table.header.get("class_names", ()))
    else:
        data = _inputs.open_images(spec, config)
        keys, labels, names = data.rows.keys, data.rows.labels, data.class_names
    check_classes(labels, spec, least=least)
    known = np.flatnonzero(labels >= 0)
    return Labelled(
        spec=spec,
        rows=known,
        keys=[keys[i] for i in known.tolist()],
        labels=torch.from_numpy(labels[known]),
        class_names=names,
        table=table,
    )


def read_features(config: Config, labelled: Labelled, encoder: Encoder | None, world: World) -> torch.Tensor:
    """Features [N, D] of labelled rows, on the device; images are dealt out to the ranks by batch and summed over them.

    Errors: DataError for images that cannot be read, and for features with NaN or infinity.
    """
    import torch

    from corecli.data.loader import read_batches
    from corecli.data.order import sequential_batches
    from corecli.engine.dist import sum_over_ranks
    from corecli.engine.precision import autocast
    from corecli.engine.progress import Progress

    if labelled.table is not None:
        return labelled.table.features[torch.from_numpy(labelled.rows)].to(world.device)
    assert encoder is not None
    data = _inputs.open_images(labelled.spec, config)
    num = len(labelled.rows)
    features = torch.zeros(num, _num_dimensions(config, labelled, encoder))
    with Progress(f"probe {labelled.spec}", total=num, shown=world.is_main and not config.quiet) as progress:
        places = list(sequential_batches(num, config.batch_size, rank=world.rank, world_size=world.size))
        batches = (labelled.rows[place] for place in places)
        read = read_batches(data, batches, device=world.device, workers=_inputs.num_workers(config.workers))
        for place, (images, _) in zip(places, read, strict=True):
            with autocast(config.precision, world.device):
                features[place] = encoder.encode(images, config.layer).cpu()
            progress.advance(len(place) * world.size, images=len(place) * world.size)
    features = sum_over_ranks(features) if world.size > 1 else features
    if not features.isfinite().all():
        raise DataError("features contain NaN or infinity", where=labelled.spec)
    return features.to(world.device)


@dataclass(frozen=True, kw_only=True)
class ClassSpace:
    """The classes a training set teaches, numbered 0..C-1: the labels they have there, int64 [C], and their names."""

    labels: torch.Tensor
    names: tuple[str, ...]

    @staticmethod
    def of(train: Labelled) -> ClassSpace:
        """The classes that occur in a training set; all of its names are kept, by label."""
        return ClassSpace(labels=train.labels.unique(), names=train.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, number: int) -> str:
        """The name of a class, or its label where there are no names."""
        label = int(self.labels[number])
        return self.names[label] if self.names else str(label)

    def numbers(self, other: Labelled) -> torch.Tensor:
        """The labels of another set, or of the training set itself, as numbers in 0..C-1, joined by name.

        Errors: DataError for a class that the training set does not have.
        """
        import torch

        from corecli.metrics._classes import index_classes

        labels = other.labels
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

    def shared_with(self, test: Labelled) -> torch.Tensor | None:
        """bool [C]: the classes a test set has names for; None when those are all, or names are not known."""
        import torch

        if not (self.names and test.class_names):
            return None
        shared = torch.tensor([self.name(c) in test.class_names for c in range(len(self))])
        return None if bool(shared.all()) else shared


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task with its labels: what there is to learn, and to answer.

    numbers: int64 [N + M], the classes of the training rows and, after them, of --val's; answers: those of each test
    set; subsets: for each seed the training rows it may use, int64 places in 0..N-1.
    """

    task: Task
    space: ClassSpace
    train: Labelled
    val: Labelled | None
    tests: tuple[Labelled, ...]
    numbers: torch.Tensor
    answers: tuple[torch.Tensor, ...]
    subsets: tuple[torch.Tensor, ...]


def read_problem(config: Config, task: Task, encoder: Encoder | None, num_seeds: int) -> Problem:
    """The labels of all sets of a task; no image is read. Errors: DataError."""
    import torch

    train = read_labels(config, task.train.spec, least=2)
    val = None if task.val is None else read_labels(config, task.val.spec, least=1)
    tests = tuple(read_labels(config, one.spec, least=1) for one in task.tests)
    space = ClassSpace.of(train)
    for other in (*([val] if val else []), *tests):
        _check_dimensions(_num_dimensions(config, other, encoder), _num_dimensions(config, train, encoder), other.spec)
    numbers = space.numbers(train)
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


def draw_subsets(config: Config, numbers: torch.Tensor, num_seeds: int) -> tuple[torch.Tensor, ...]:
    """For each seed sorted places of the training rows it may use: all, or --shots or --fraction of every class."""
    import torch

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


def _num_dimensions(config: Config, labelled: Labelled, encoder: Encoder | None) -> int:
    if labelled.table is not None:
        return labelled.table.features.shape[1]
    assert encoder is not None
    return encoder.num_features if config.layer == "backbone" else encoder.projector_dim or 0


def _check_dimensions(found: int, of_train: int, where: str) -> None:
    """Errors: DataError when --force has let features of two lengths pass."""
    if found != of_train:
        reason = f"features of {found} dimensions, the training set's have {of_train}"
        raise DataError(reason, where=where, hint="extract both with one encoder and layer")
