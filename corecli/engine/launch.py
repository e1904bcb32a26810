"""Where a verb runs: in this process, as a member of the processes it finds itself among, or in ones started here.

torch.distributed.run is used as a library, because its command line turns every outcome into exit code 1. Processes
fail as one: the first that fails says why, and all end with its exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

from corecli.base.errors import CorecliError, ReportedElsewhere, UnavailableError, UsageError
from corecli.base.files import unreadable
from corecli.engine.dist import World, claim_failure, find_launch, is_lost_rank, join, leave
from corecli.engine.signals import LAUNCHER, STOPPING

_MOURNING_SEC = 1.0
_OUT_OF_MEMORY = (  # of RuntimeErrors: the CPU's allocator, CUDA without its own class, its libraries
    "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED",
)  # fmt: skip


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
    """Whether processes must be started for this line; inside an srun step of several tasks --nnodes asks for it."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return False
    return config.nnodes != "1" or (find_launch(os.environ).size == 1 and num_processes(config) > 1)


def num_processes(config: Launchable) -> int:
    """`--nproc` as a number; `auto` is one a GPU, or one on a machine without. Errors: UsageError."""
    if config.nproc == "auto":
        import torch

        return max(1, torch.cuda.device_count()) if config.device != "cpu" else 1
    if not config.nproc.isdigit() or int(config.nproc) < 1:
        raise UsageError(f"--nproc {config.nproc!r} is neither a number nor auto")
    return int(config.nproc)


def launch(config: Launchable, argv: list[str]) -> int:
    """Run a command line in several processes and return the exit code of the first that failed, or 0.

    Errors: UsageError, UnavailableError; CorecliError when a process was killed, so that it cannot have said why.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import run

    arguments = _torchrun_arguments(config, argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // num_processes(config))))
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        with _quiet_logs(), _forwarded_signals():
            run(arguments)
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0 or -failure.exitcode in STOPPING:
            return abs(failure.exitcode) + (128 if failure.exitcode < 0 else 0)
        name = signal.Signals(-failure.exitcode).name
        raise CorecliError(f"process {rank} was killed by {name}", exit_code=128 - failure.exitcode) from None
    return 0


@contextlib.contextmanager
def joined(config: Launchable, verb: str) -> Iterator[World]:
    """The world of this process for the length of a verb.

    Running out of memory becomes a user's error, and of several processes that fail only the first says why.
    """
    world = join(config.device)
    try:
        yield world
    except (Exception, KeyboardInterrupt) as error:
        mended = _mended(error, config, world)
        told = claim_failure(_exit_code(mended), world)
        if told is not None:
            raise ReportedElsewhere("see above", exit_code=told) from None
        if mended is error:
            raise
        raise mended from error
    finally:
        leave(world)


def _torchrun_arguments(config: Launchable, argv: list[str]) -> argparse.Namespace:
    """The options of torchrun, with our line as the one of its workers. Errors: UsageError, UnavailableError."""
    import torch
    from torch.distributed.run import get_args_parser

    processes, gpus = num_processes(config), torch.cuda.device_count()
    if config.device != "cpu" and 0 < gpus < processes:
        raise UnavailableError(f"{processes} processes, and {gpus} GPUs", hint="lower --nproc, or use --device cpu")
    where = ["--standalone"]
    if config.nnodes != "1":
        if config.rdzv_endpoint is None:
            raise UsageError("--nnodes needs --rdzv-endpoint HOST:PORT")
        where = [f"--nnodes={config.nnodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={config.rdzv_endpoint}"]
    # The other signals are forwarded here, for torchrun would answer them with its own exit code and a deadline.
    options = [f"--nproc-per-node={processes}", "--signals-to-handle=SIGHUP,SIGQUIT"]
    arguments = get_args_parser().parse_args([*where, *options, "--module", "corecli"])
    arguments.training_script_args = argv  # not parsed, as torchrun takes --nproc for an abbreviation of its own
    return arguments


@contextlib.contextmanager
def _forwarded_signals() -> Iterator[None]:
    """The stop signals go to the workers, which save and end; this process then ends as they did."""

    def forward(number: int, _: FrameType | None) -> None:
        workers = _children()
        if not workers:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = [signal.signal(number, forward) for number in STOPPING]
    try:
        yield
    finally:
        for number, handler in zip(STOPPING, before, strict=True):
            signal.signal(number, handler)


def _children() -> list[int]:
    """The processes this one has started."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    if listed.exists():
        return [int(pid) for pid in listed.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _mended(error: BaseException, config: Launchable, world: World) -> BaseException:
    """`error`, or the user's error that it means."""
    if _is_out_of_memory(error):
        batch = getattr(config, "batch_size", None)
        hint = f"try --batch-size {batch // 2}" if batch and batch > 1 else None
        return CorecliError(f"out of memory on {world.device}", hint=hint)
    if world.size > 1 and is_lost_rank(error):
        time.sleep(_MOURNING_SEC)  # the launcher should see first which process it was that died
        cause = re.sub(r"^\[[^]]*\] |\. .*", "", str(error).splitlines()[0])  # gloo's, without file and advice
        return CorecliError(f"lost another process: {cause}")
    return error


def _exit_code(error: BaseException) -> int:
    if isinstance(error, OSError):
        return unreadable(error).exit_code
    return error.exit_code if isinstance(error, CorecliError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


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
