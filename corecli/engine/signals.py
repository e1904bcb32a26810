"""SIGINT, SIGTERM and SIGUSR1 ask the run to stop at the next step; a second SIGINT stops at once."""

from __future__ import annotations

import signal
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """A context in which the stop signals set a flag instead of ending the process."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopRequest:
        self._before = [signal.signal(number, self._handle) for number in _ASKING]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(_ASKING, self._before, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
