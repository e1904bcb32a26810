"""Worker processes that decode batches ahead of their use.

The workers of torch's DataLoader are not used for these reasons: they die of signals meant for the run and end the main
process before it has saved; they garble errors, outlive a killed parent by seconds and need space in /dev/shm. Here
images are written to memory shared through fork, and a worker ends when its pipe is closed.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import multiprocessing
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.util import Finalize
from typing import Any, Protocol

import torch
from torch import Tensor

from corecli.base.errors import TRUNCATED_IN_USE, CorecliError

BATCHES_AHEAD = 3
AVAILABLE = sys.platform == "linux"  # elsewhere fork is missing or not safe


class Filler(Protocol):
    """Reads the images of a batch into tensors; a worker reads a part of the batch."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each uint8 tensor of a batch, without the batch dimension, which comes first."""
        ...

    def fill(self, request: Any, part: slice, into: tuple[Tensor, ...]) -> None:
        """Read the images at the positions `part` of a request into tensors for these images."""
        ...


def fill_by_workers(
    filler: Filler, requests: Iterator[Any], *, num_workers: int, batch_size: int
) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """Yield (tensors, request) for each request, in order; requests have a length, which is at most `batch_size`.

    Each worker fills a part of every batch. The tensors are valid until the next batch is requested; then their memory
    is reused. Errors: those of `filler.fill`; CorecliError if a worker is killed.
    """
    slots = [_shared(batch_size, filler.shapes) for _ in range(BATCHES_AHEAD)]
    workers = _start(filler, slots, num_workers)
    stop = Finalize(None, _stop, (workers,), exitpriority=0)  # runs at exit if this generator is never closed
    pending: deque[tuple[int, Any]] = deque()
    try:
        for slot, request in zip(cycle(range(len(slots))), requests, strict=False):
            if len(pending) == len(slots):
                yield _finished(workers, slots, *pending.popleft())
            for worker, part in zip(workers, _parts(len(request), num_workers), strict=False):
                worker.request(slot, request, part)
            pending.append((slot, request))
        while pending:
            yield _finished(workers, slots, *pending.popleft())
    finally:
        stop()


@dataclass(frozen=True)
class _Worker:
    pipe: Connection
    process: ForkProcess

    def request(self, slot: int, request: Any, part: slice) -> None:
        try:
            self.pipe.send((slot, request, part))
        except OSError as error:
            raise self._killed() from error

    def answer(self) -> CorecliError | str | None:
        try:
            return self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._killed() from error

    def _killed(self) -> CorecliError:
        self.process.join()
        reason = f"a worker process ended with status {self.process.exitcode} while decoding images"
        if self.process.exitcode == -signal.SIGBUS:
            return CorecliError(reason, hint=TRUNCATED_IN_USE)
        return CorecliError(reason, hint="if memory is short, use --workers 0")


def _finished(
    workers: list[_Worker], slots: list[tuple[Tensor, ...]], slot: int, request: Any
) -> tuple[tuple[Tensor, ...], Any]:
    for worker, _ in zip(workers, _parts(len(request), len(workers)), strict=False):
        answer = worker.answer()
        if isinstance(answer, CorecliError):
            raise answer
        if answer is not None:
            raise RuntimeError(f"in a worker process that decodes images: {answer}")
    return tuple(tensor[: len(request)] for tensor in slots[slot]), request


def _parts(num: int, num_workers: int) -> list[slice]:
    """Return ranges that cut a batch into a part for each worker; a small batch has fewer parts than workers."""
    size = max(1, -(-num // num_workers))
    return [slice(start, min(start + size, num)) for start in range(0, num, size)]


def _shared(batch: int, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
    """Return uint8 tensors in anonymous shared memory: forked processes write into it."""
    tensors = []
    for shape in shapes:
        memory = mmap.mmap(-1, max(1, batch * math.prod(shape)))
        tensors.append(torch.frombuffer(memory, dtype=torch.uint8)[: batch * math.prod(shape)].view(batch, *shape))
    return tuple(tensors)


def _start(filler: Filler, slots: list[tuple[Tensor, ...]], num_workers: int) -> list[_Worker]:
    context = multiprocessing.get_context("fork")
    workers: list[_Worker] = []
    for _ in range(num_workers):
        ours, theirs = context.Pipe()
        not_theirs = [*(worker.pipe for worker in workers), ours]
        process = context.Process(target=_work, args=(filler, slots, theirs, not_theirs), daemon=True)
        process.start()
        theirs.close()
        workers.append(_Worker(ours, process))
    return workers


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.pipe.send(None)
        worker.pipe.close()
    for worker in workers:
        worker.process.join()


def _work(filler: Filler, slots: list[tuple[Tensor, ...]], pipe: Connection, not_ours: list[Connection]) -> None:
    """Fill the requested parts of slots until the pipe sends None or closes because the main process died."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the main process handles them: it saves first
    for other in not_ours:
        other.close()
    torch.set_num_threads(1)  # a forked OpenMP pool does not work
    with contextlib.suppress(EOFError, OSError):
        while (found := pipe.recv()) is not None:
            slot, request, part = found
            pipe.send(_fill(filler, request, part, tuple(tensor[part] for tensor in slots[slot])))


def _fill(filler: Filler, request: Any, part: slice, into: tuple[Tensor, ...]) -> CorecliError | str | None:
    """Return None, or an error as a value: a CorecliError itself, the traceback of any other."""
    try:
        filler.fill(request, part, into)
    except CorecliError as error:
        return error
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return None
