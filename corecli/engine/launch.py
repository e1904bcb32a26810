"""Where a verb runs: in this process, as a member of the processes it finds itself among, or in ones started here.

torch.distributed.run is used as a library, because its command line turns every outcome into exit code 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import Protocol

from corecli.base.errors import CorecliError, UsageError
from corecli.engine.dist import World, find_launch, join, leave

_PR_SET_PDEATHSIG = 1
_SHUTDOWN_SEC = 25  # under the 30 s a cluster grants between SIGTERM and SIGKILL


class Launchable(Protocol):
    """The fields of a verb's Config that decide where it runs."""

    @property
    def device(self) -> str: ...
    @property
    def nproc(self) -> str: ...
    @property
    def nnodes(self) -> str: ...
    @property
    def rdzv_endpoint(self) -> str | None: ...


def needed(config: Launchable) -> bool:
    """Whether processes must be started for this line."""
    return not _is_worker() and (num_processes(config) > 1 or config.nnodes != "1")


def num_processes(config: Launchable) -> int:
    """`--nproc` as a number; `auto` is one a GPU, or one on a machine without. Errors: UsageError."""
    if config.nproc == "auto":
        import torch

        return max(1, torch.cuda.device_count()) if config.device != "cpu" else 1
    if not config.nproc.isdigit() or int(config.nproc) < 1:
        raise UsageError(f"--nproc {config.nproc!r} is neither a number nor auto")
    return int(config.nproc)


def launch(config: Launchable) -> int:
    """Run this command line in several processes and return the exit code of the first that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    processes = num_processes(config)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    where = ["--standalone"] if config.nnodes == "1" else [f"--nnodes={config.nnodes}", "--rdzv-backend=c10d"]
    if config.nnodes != "1":
        if config.rdzv_endpoint is None:
            raise UsageError("--nnodes needs --rdzv-endpoint HOST:PORT")
        where.append(f"--rdzv-endpoint={config.rdzv_endpoint}")
    arguments = [*where, f"--nproc-per-node={processes}", f"--shutdown-timeout={_SHUTDOWN_SEC}"]
    arguments += ["--module", "corecli", *sys.argv[1:]]
    try:
        with _quiet_logs():
            run(get_args_parser().parse_args(arguments))
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    return 0


@contextlib.contextmanager
def joined(config: Launchable, verb: str) -> Iterator[World]:
    """The world of this process for the length of a verb; running out of memory becomes a user's error."""
    import torch

    if _is_worker():
        _die_with_launcher()
    world = join(config.device)
    try:
        yield world
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        batch = getattr(config, "batch_size", None)
        hint = f"try --batch-size {max(1, batch // 2)}" if batch else None
        raise CorecliError(f"out of memory on {world.device}", hint=hint) from error
    finally:
        leave(world)


def _is_worker() -> bool:
    return "RANK" in os.environ or find_launch(os.environ).size > 1


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _die_with_launcher() -> None:
    """A killed launcher must not leave workers behind holding the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Our workers explain their own failures; the launcher's fifty lines would bury them."""
    import logging

    names = ("torch.distributed.elastic", "torch.distributed.run")
    before = [logging.getLogger(n).level for n in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(level)
