"""Stop signals: SIGINT, SIGTERM, SIGHUP and SIGUSR1 save a run and end it; a second SIGINT ends it immediately.

Both contexts below end with InterruptedAfterSaving. Outside of them the signals have their default effect.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType, TracebackType

from corecli.base.errors import InterruptedAfterSaving

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LAUNCHER = "CORECLI_LAUNCHER"  # environment variable with the process id of the launcher, set for its workers
_PR_SET_PDEATHSIG = 1


def handled() -> tuple[signal.Signals, ...]:
    """Return the stop signals; without SIGHUP under nohup, which ignores it so that the run goes on."""
    return tuple(n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)


class StopRequest:
    """A context in which stop signals set a flag, for work that must save before it ends."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in handled()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class StopAtOnce(StopRequest):
    """A context that stop signals end immediately, for work whose finished parts are safe at any time.

    Errors: InterruptedAfterSaving, with the message `kept`.
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
        """End the context if a signal arrived and its exception was lost, for example in a finalizer."""
        if self.requested:
            raise _Stop

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        super()._handle(number, frame)
        if first:
            raise _Stop


class _Stop(KeyboardInterrupt):
    """Ends a StopAtOnce context; not an Exception, so that handlers in between do not catch it."""


def die_with_launcher() -> None:
    """Arrange that this process dies with the launcher that started it, so that no worker keeps a GPU."""
    launcher = os.environ.get(LAUNCHER)
    if sys.platform != "linux" or (launcher is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if launcher is not None and os.getppid() != int(launcher):  # the launcher died before the call above
        os._exit(128 + signal.SIGKILL)
