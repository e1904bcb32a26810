"""Errors for users: what is wrong, where, and what to do. Exit codes are those of sysexits.h where it has one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

WHOLE_FOLDER = "copy or download the whole folder"  # the hint for an incomplete model folder

TRUNCATED_IN_USE = "another program truncated a file that was in use, or its disk failed"  # the hint for SIGBUS


class CorecliError(Exception):
    """An error that a user can act on; it is printed as one line `where: reason (hint)`, without a traceback."""

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
    """The command line names something unknown, or options that do not go together."""

    exit_code = 2


class DataError(CorecliError):
    """The content of a file is malformed or incomplete, or does not belong with another file."""

    exit_code = 65


class MissingInputError(CorecliError):
    """An input does not exist or cannot be opened."""

    exit_code = 66


class UnavailableError(CorecliError):
    """A GPU, an optional package or a weight file is not available."""

    exit_code = 69


class CannotCreateError(CorecliError):
    """An output exists with another config, or its path cannot be written."""

    exit_code = 73


class StorageError(CorecliError):
    """Input or output failed, for example because the disk is full."""

    exit_code = 74


class InterruptedAfterSaving(CorecliError):
    """A signal stopped the work after its state was saved; running the same line resumes it."""

    exit_code = 75


class BusyError(CorecliError):
    """Another job is writing the same target; the same line works once that job has ended."""

    exit_code = 75


class ReportedElsewhere(CorecliError):
    """Another process of the run failed and reported its error; this one exits silently with the same code."""


class ConfigError(CorecliError):
    """A configuration file or an environment variable has an unknown key or a bad value."""

    exit_code = 78


def first_line(error: BaseException) -> str:
    """Return the first line of what a library raised, at most 200 characters, or the name of its type."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


@contextmanager
def about(where: object) -> Iterator[None]:
    """Add `where` to a DataError that is raised inside without a place."""
    try:
        yield
    except DataError as error:
        error.where = where if error.where is None else error.where
        raise


@contextmanager
def read_from(where: object, what: str) -> Iterator[None]:
    """Convert a UsageError to a DataError, for names that a file holds and not the command line."""
    try:
        yield
    except UsageError as error:
        raise DataError(f"{what}: {error.reason}", where=where, hint=error.hint) from error


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """Return the error for a name that is not among `choices`; its hint is the nearest choice, or all of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}" if choices else "there are none"
    )
    return UsageError(f"unknown {kind} {name!r}", hint=hint)
