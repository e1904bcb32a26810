"""What the stop signals do: SIGINT, SIGTERM and SIGUSR1 end the work where nothing is lost; a second SIGINT at once.

Both kinds of context below end in InterruptedAfterSaving. Outside them the signals do what they do to any process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType, TracebackType

from corecli.base.errors import InterruptedAfterSaving

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LAUNCHER = "CORECLI_LAUNCHER"  # the process id of the launcher, in the environment of the workers it starts
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """A context in which the stop signals set a flag, for work that has to save first."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = [signal.signal(number, self._handle) for number in STOPPING]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(STOPPING, self._before, strict=True):
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class StopAtOnce(StopRequest):
    """A context which the stop signals end there and then, for work whose finished parts are safe at any moment.

    Errors: InterruptedAfterSaving, saying what is `kept`.
    """

    def __init__(self, kept: str) -> None:
        super().__init__()
        self._kept = kept

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, _Stop):
            raise InterruptedAfterSaving(f"stopped, {self._kept}", hint="the same line resumes") from None

    def check(self) -> None:
        """End the context if a signal came, should its exception have been lost, as in a finalizer."""
        if self.requested:
            raise _Stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        super()._handle(number, frame)
        if first:
            raise _Stop


class _Stop(KeyboardInterrupt):
    """Passes through what handles mere exceptions on its way to the end of a StopAtOnce context."""


def die_with_launcher() -> None:
    """End this process when the launcher that started it is killed, so that no worker is left holding a GPU."""
    launcher = os.environ.get(LAUNCHER)
    if sys.platform != "linux" or (launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if launcher is not None and os.getppid() != int(launcher):  # it died before this process could ask
        os._exit(128 + signal.SIGKILL)
