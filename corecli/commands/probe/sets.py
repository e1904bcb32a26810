"""The sets that a probe is trained and scored on: their names, which belong together, and checks without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.checkpoint import read_header
from corecli.base.errors import DataError, UsageError
from corecli.base.files import sniff

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A set as written on the command line, `NAME=SET` or `SET`."""

    name: str | None
    spec: str

    @property
    def shown(self) -> str:
        """The name in tables and messages."""
        return self.name or self.spec


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training set with its validation set, if it has one, and the test sets that are scored on it."""

    train: NamedSet
    val: NamedSet | None
    tests: tuple[NamedSet, ...]

    @property
    def sets(self) -> tuple[NamedSet, ...]:
        """All of them, the training set first."""
        return (self.train, *([self.val] if self.val else []), *self.tests)


def named(text: str) -> NamedSet:
    """Split `NAME=SET`. The text of an existing path is a set without a name, even if it has an equals sign."""
    name, _, spec = text.partition("=")
    if spec and _NAME.fullmatch(name) and not Path(text).exists():
        return NamedSet(name=name, spec=spec)
    return NamedSet(name=None, spec=text)


def tasks(train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> tuple[Task, ...]:
    """Group sets by name: a test or validation set belongs to the training set of its name, or else to the first one.

    Errors: UsageError if a name repeats, or a set belongs to no other.
    """
    trains, vals, tests = ([named(text) for text in texts] for texts in (train, val, test))
    for option, sets in (("--train", trains), ("--val", vals), ("--test", tests)):
        _check_distinct(option, [one.shown if option == "--test" else one.name for one in sets])
    held = {_owner(one, trains): one for one in vals}
    strangers = [one for one in vals if one.name not in (None, *(own.name for own in trains))]
    if strangers or len(held) < len(vals):
        shown = strangers[0].shown if strangers else trains[0].shown
        raise UsageError(f"--val {shown} needs a --train of its own", hint="give both the same NAME")
    found = []
    for own in trains:
        scored = tuple(one for one in tests if _owner(one, trains) is own)
        if not scored:
            raise UsageError(f"--train {own.shown} has no --test", hint=f"give --test {own.name or 'NAME'}=SET")
        found.append(Task(train=own, val=held.get(own), tests=scored))
    return tuple(found)


def _owner(one: NamedSet, trains: Sequence[NamedSet]) -> NamedSet:
    return next((own for own in trains if own.name == one.name), trains[0])


def _check_distinct(option: str, names: Sequence[str | None]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{option} has two sets {'without a name' if name is None else f'called {name}'}")


def is_table(spec: str) -> bool:
    """Whether a set is a feature table, not images."""
    header = _header(spec)
    return header is not None and header["kind"] == "features"


def _header(spec: str) -> dict[str, Any] | None:
    path = Path(spec)
    return read_header(path) if path.exists() and sniff(path) in ("safetensors", "torch") else None


def check_classes(labels: np.ndarray, spec: str, *, least: int) -> None:
    """Raise DataError if the labels (-1: unknown) have fewer than `least` classes."""
    num = len(np.unique(labels[labels >= 0]))
    if num == 0:
        raise DataError("has no labels", where=spec, hint="class sub-folders give labels")
    if num < least:
        raise DataError("has labels of one class only", where=spec, hint="a probe needs at least two classes")


def check_spaces(train: str, test: str, *, encoder: str | None, layer: str) -> None:
    """Raise DataError if two sets are known to have features of different encoders or layers.

    encoder: path or name of the encoder that image sets pass through, up to `layer`.
    """
    header = _header(encoder) if encoder else None
    spaces = []
    for spec in (train, test):
        table = _header(spec) if is_table(spec) else None
        if table is not None:
            spaces.append((table.get("encoder"), table.get("layer")))
        elif header is not None:
            spaces.append((header["fingerprint"], layer))
    if len(spaces) == 2 and spaces[0] != spaces[1]:
        own, other = (f"{layer} of {str(fingerprint)[:12]}" for fingerprint, layer in spaces)
        hint = "extract both with one encoder and layer; --force accepts it"
        raise DataError(f"features are {other}, those of {train} are {own}", where=test, hint=hint)
