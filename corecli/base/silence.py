"""Run libraries of models quietly: without their messages, and without access to standard input.

Callers check what the libraries would warn of, and report it in one line.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@contextmanager
def silence(*libraries: str) -> Iterator[None]:
    """Turn off warnings and progress bars of diffusers or transformers, and close standard input to their questions.

    Libraries that are not installed are skipped.
    """
    with _closed_stdin(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers: list[Any] = [import_module(f"{name}.utils.logging") for name in libraries if find_spec(name)]
        before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggers]
        for each in loggers:
            each.set_verbosity(logging.CRITICAL)
            each.disable_progress_bar()
        try:
            yield
        finally:
            for each, (verbosity, has_bar) in zip(loggers, before, strict=True):
                each.set_verbosity(verbosity)
                if has_bar:
                    each.enable_progress_bar()


@contextmanager
def _closed_stdin() -> Iterator[None]:
    """Let whatever reads standard input, by its number or by `sys.stdin`, find it empty."""
    stdin, kept = sys.stdin, None
    with suppress(OSError):  # the caller may have closed it
        kept = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = stdin
            if kept is not None:
                os.dup2(kept, 0)
                os.close(kept)
