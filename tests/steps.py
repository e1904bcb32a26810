"""Act between the steps of a training run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from corecli.engine.run import Run


def before_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Have every run call `act` before it takes `step`, counted from 0."""
    steps = Run.steps

    def patched(self: Run) -> Iterator[int]:
        for number in steps(self):
            if number == step:
                act()
            yield number

    patch.setattr(Run, "steps", patched)
