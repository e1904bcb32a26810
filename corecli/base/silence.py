"""Libraries that talk while they load and run, kept quiet where what they say is checked and said in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@contextmanager
def silence(*libraries: str) -> Iterator[None]:
    """Without the warnings and the progress bars of diffusers or transformers; those not installed are passed over."""
    loggers: list[Any] = [import_module(f"{name}.utils.logging") for name in libraries if find_spec(name) is not None]
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
