"""The sets a probe is trained and scored on: which of them belong together, and whether they can."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.checkpoint import read_header
from corecli.base.errors import DataError, UsageError
from corecli.base.files import sniff
from corecli.commands.parts.inputs import open_images
from corecli.commands.parts.layer import layer_name

if TYPE_CHECKING:
    from corecli.commands.probe.options import Config
    from corecli.data.masks import MaskedImages

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


def open_masks(config: Config, task: Task, one: NamedSet) -> MaskedImages:
    """A set of a task with its masks: those of its name. Errors: MissingInputError, DataError, UsageError."""
    from corecli.data.masks import open_masked

    given = [named(text) for text in (config.train_masks if one is task.train else config.test_masks)]
    masks = next((other.spec for other in given if other.name == one.name), None)
    return open_masked(one.spec, masks, on_bad=config.on_bad, zero_is_no_class=bool(config.reduce_zero_label))


def check_task(config: Config, task: Task) -> None:
    """Errors: as reading its sets would raise, as far as they show without torch."""
    if config.mode == "segment":
        if config.encoder is None:
            raise UsageError("--mode segment needs --encoder")
        for one in task.sets:
            open_masks(config, task, one)
        return
    for one in task.sets:
        if not is_table(one.spec):
            data = open_images(one.spec, config)
            if config.encoder is None:
                raise UsageError("an image set needs --encoder", where=one.spec)
            if config.labels is None:
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
            spaces.append((encoder["fingerprint"], layer_name(config.layer, config.pool, config.blocks)))
    if len(spaces) == 2 and spaces[0] != spaces[1]:
        told = [f"{layer} of {str(fingerprint)[:12]}" for fingerprint, layer in spaces]
        hint = "extract both with one encoder and layer; --force accepts it"
        raise DataError(f"features are {told[1]}, those of {train} {told[0]}", where=test, hint=hint)
