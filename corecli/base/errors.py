"""Errors for users: what, where, how to mend; each class carries its exit code (sysexits where they exist)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

WHOLE_FOLDER = "copy or download the whole folder"  # the hint where a model's folder lacks something


class CorecliError(Exception):
    """A mistake or misfortune a user can act on; printed as one line `where: reason (hint)`, without traceback."""

    exit_code = 1

    def __init__(
        self, reason: str, *, where: object = None, hint: str | None = None, exit_code: int | None = None
    ) -> None:
        self.reason, self.where, self.hint = reason, where, hint
        if exit_code is not None:
            self.exit_code = exit_code
        super().__init__(reason)

    def __str__(self) -> str:
        text = self.reason if self.where is None else f"{self.where}: {self.reason}"
        return f"{text} ({self.hint})" if self.hint else text


class UsageError(CorecliError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class DataError(CorecliError):
    """A file's content is malformed, incomplete or does not belong with another file."""

    exit_code = 65


class MissingInputError(CorecliError):
    """An input does not exist or cannot be opened."""

    exit_code = 66


class UnavailableError(CorecliError):
    """A GPU, an optional package or a weight file is not there."""

    exit_code = 69


class CannotCreateError(CorecliError):
    """An output exists with another config, or its place cannot be written."""

    exit_code = 73


class StorageError(CorecliError):
    """Input/output failed half-way, such as a full disk."""

    exit_code = 74


class InterruptedAfterSaving(CorecliError):
    """A signal stopped the work after its state was saved; the same line resumes."""

    exit_code = 75


class ReportedElsewhere(CorecliError):
    """Another process of the same run has failed and said why; this one ends with the same code, in silence."""


class ConfigError(CorecliError):
    """A configuration file or an environment variable holds an unknown key or a bad value."""

    exit_code = 78


@contextmanager
def about(where: object) -> Iterator[None]:
    """Give a DataError raised inside that does not say where it is the place `where`."""
    try:
        yield
    except DataError as error:
        error.where = where if error.where is None else error.where
        raise


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not in a registry: lists the choices, suggests the nearest."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}" if choices else "there are none"
    )
    return UsageError(f"unknown {kind} {name!r}", hint=hint)
