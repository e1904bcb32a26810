"""Decide where a verb runs: in this process, among the processes of a launcher, or in processes started here.

torch.distributed.run is used as a library, because its command line turns every outcome into exit code 1. Processes
fail together: the first one that fails reports the error, and all exit with its code. Torch is imported when needed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from corecli.base.errors import TRUNCATED_IN_USE, CorecliError, ReportedElsewhere, UnavailableError, UsageError
from corecli.base.files import unreadable
from corecli.engine.environment import MEETING, find_launch
from corecli.engine.signals import LAUNCHER, STOPPING, handled

if TYPE_CHECKING:
    from corecli.engine.dist import World

_LOST_RANK_DELAY_SEC = 1.0  # time for the launcher to see first which process died
_MOST_PER_CORE = 4
_OUT_OF_MEMORY = (  # messages of RuntimeErrors from the CPU allocator, CUDA and the libraries of CUDA
    "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED",
)  # fmt: skip


class Launchable(Protocol):
    """The options that decide where a verb runs."""

    @property
    def device(self) -> str: ...
    @property
    def nproc(self) -> str: ...
    @property
    def nnodes(self) -> str: ...
    @property
    def rdzv_endpoint(self) -> str | None: ...


def needed(config: Launchable) -> bool:
    """Whether this command line needs processes that are not running yet.

    In an srun step of several tasks they run already, unless --nnodes requests torchrun on each of them.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return False
    return config.nnodes != "1" or (find_launch(os.environ).size == 1 and num_processes(config) > 1)


def num_processes(config: Launchable) -> int:
    """Return --nproc as a number; `auto` is the number of GPUs, at least 1. Errors: UsageError."""
    if config.nproc == "auto":
        import torch

        return max(1, torch.cuda.device_count()) if config.device != "cpu" else 1
    if re.fullmatch("[0-9]{1,9}", config.nproc) is None or int(config.nproc) < 1:
        raise UsageError(f"--nproc {config.nproc!r} is neither a number nor auto")
    num, most = int(config.nproc), _MOST_PER_CORE * _num_cores()
    if num > most:
        reason = f"--nproc {num} is more than {_MOST_PER_CORE} processes for each of the {_num_cores()} cores"
        raise UsageError(reason, hint=f"use at most {most}")
    return num


def launch(config: Launchable, argv: list[str]) -> int:
    """Run a command line in several processes; return 0, or the exit code of the first process that failed.

    Errors: UsageError, UnavailableError; CorecliError when a process was killed and could not report an error itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // num_processes(config))))
    try:
        with _quiet_logs(), _environment({LAUNCHER: str(os.getpid())}), _meeting(config) as where, _forwarded_signals():
            run(_torchrun_arguments(config, where, argv))
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0 or -failure.exitcode in STOPPING:
            return abs(failure.exitcode) + (128 if failure.exitcode < 0 else 0)
        name = signal.Signals(-failure.exitcode).name
        hint, code = TRUNCATED_IN_USE if name == "SIGBUS" else None, 128 - failure.exitcode
        raise CorecliError(f"process {rank} was killed by {name}", exit_code=code, hint=hint) from None
    return 0


@contextlib.contextmanager
def joined(config: Launchable) -> Iterator[World]:
    """Join the processes of this run for the length of a verb, and leave them at its end.

    Running out of memory becomes a CorecliError. If several processes fail, only the first one reports its error.
    """
    from corecli.engine.dist import claim_failure, join, leave

    world = join(config.device)
    try:
        yield world
    except BaseException as error:
        reported = _explained(error, config, world)
        first_code = claim_failure(_exit_code(reported), world)
        if first_code is not None:
            raise ReportedElsewhere("see above", exit_code=first_code) from None
        if reported is error:
            raise
        raise reported from error
    finally:
        leave(world)


def wait_for_main(world: World) -> None:
    """Wait until the main process has locked the targets."""
    from corecli.engine.dist import barrier

    barrier(world)


@contextlib.contextmanager
def alone(config: Launchable) -> Iterator[None]:
    """Run a verb in this process, without torch; running out of memory becomes a CorecliError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(config, "cpu") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or CUDA says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


@contextlib.contextmanager
def _meeting(config: Launchable) -> Iterator[list[str]]:
    """Return torchrun's options for where the processes meet. Errors: UsageError.

    On one node they meet in files of a private folder. torchrun itself would open two ports to all machines, one of
    which reads pickles.
    """
    if config.nnodes != "1":
        if config.rdzv_endpoint is None:
            raise UsageError("--nnodes needs --rdzv-endpoint HOST:PORT")
        if re.fullmatch("[0-9]{1,6}(:[0-9]{1,6})?", config.nnodes) is None:
            raise UsageError(f"--nnodes {config.nnodes!r} is neither a number nor MIN:MAX")
        yield [f"--nnodes={config.nnodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={config.rdzv_endpoint}"]
        return
    with tempfile.TemporaryDirectory(prefix="corecli-", ignore_cleanup_errors=True) as folder:
        settings = {MEETING: f"{folder}/group", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        if Path("/sys/class/net/lo").exists():
            settings["GLOO_SOCKET_IFNAME"] = "lo"
        with _environment(settings):
            file = ["--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder}/launcher"]
            yield ["--nnodes=1", "--rdzv-backend=c10d", f"--rdzv-id={os.path.basename(folder)}", *file]


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _torchrun_arguments(config: Launchable, where: list[str], argv: list[str]) -> argparse.Namespace:
    """Return torchrun's options, with this command line for its workers. Errors: UnavailableError."""
    import torch
    from torch.distributed.run import get_args_parser

    processes, gpus = num_processes(config), torch.cuda.device_count()
    if config.device != "cpu" and 0 < gpus < processes:
        raise UnavailableError(
            f"{processes} processes need as many GPUs, and there are {gpus}", hint="lower --nproc, or use --device cpu"
        )
    # The stop signals are forwarded here: torchrun would set a deadline and exit with a code of its own.
    options = [f"--nproc-per-node={processes}", "--signals-to-handle=SIGQUIT"]
    arguments = get_args_parser().parse_args([*where, *options, "--module", "corecli"])
    arguments.training_script_args = argv  # not parsed: torchrun reads --nproc as an abbreviation
    return arguments


@contextlib.contextmanager
def _forwarded_signals() -> Iterator[None]:
    """Forward stop signals to the workers, which save and exit; this process then exits with their code."""

    def forward(number: int, _: FrameType | None) -> None:
        workers = _children()
        if not workers:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """Return the ids of the processes that this one has started."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    if listed.exists():
        return [int(pid) for pid in listed.read_text().split()]
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _explained(error: BaseException, config: Launchable, world: World) -> BaseException:
    """Return the CorecliError for an error with a known cause, or the error itself."""
    from corecli.engine.dist import is_lost_rank

    if is_out_of_memory(error):
        return _out_of_memory(config, str(world.device))
    if world.size > 1 and is_lost_rank(error):
        time.sleep(_LOST_RANK_DELAY_SEC)
        cause = re.sub(r"^\[[^]]*\] |\. .*", "", str(error).splitlines()[0])  # gloo's, without file and advice
        return CorecliError(f"lost another process: {cause}")
    return error


def _out_of_memory(config: Launchable, device: str) -> CorecliError:
    batch = getattr(config, "batch_size", None)
    return CorecliError(
        f"out of memory on {device}", hint=f"try --batch-size {batch // 2}" if batch and batch > 1 else None
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, OSError):
        return unreadable(error).exit_code
    return error.exit_code if isinstance(error, CorecliError) else 130 if isinstance(error, KeyboardInterrupt) else 1


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Silence torchrun's logs: workers report their own errors, which its fifty lines would bury."""
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
