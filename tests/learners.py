"""Act on a learner between the steps of a training run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from corecli.engine.run import Run


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[Any], object], *, after: bool = False) -> None:
    """Have every run call `act` with its learner before or after it takes `step`, counted from 0."""
    steps = Run.steps

    def patched(self: Run) -> Iterator[int]:
        learner: Any = self._state.__self__  # type: ignore[attr-defined]
        for number in steps(self):
            if number == step and not after:
                act(learner)
            yield number
            if number == step and after:
                act(learner)

    patch.setattr(Run, "steps", patched)
