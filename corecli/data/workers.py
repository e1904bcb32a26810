"""Worker processes that decode batches ahead of their use.

The workers of torch's DataLoader are not used for these reasons: they die of signals meant for the run and end the main
process before it has saved; they garble errors, outlive a killed parent by seconds and need space in /dev/shm. Here
images are written to memory shared through fork, and a worker ends when its pipe is closed.
"""

from __future__ import annotations

import contextlib
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

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import TRUNCATED_IN_USE, CorecliError
from corecli.data.imageset import ImageSet

BATCHES_PER_WORKER = 2
AVAILABLE = sys.platform == "linux"  # elsewhere fork is missing or not safe


def read_by_workers(
    image_set: ImageSet, batches: Iterator[np.ndarray], *, num_workers: int, batch_size: int
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield (images uint8 [b, 3, H, W], rows) for each batch of at most `batch_size` rows, in order.

    The images are valid until the next batch is requested; then their memory is reused.
    Errors: those of `image_set.read`; CorecliError if a worker is killed.
    """
    slots = _shared_images(num_workers * BATCHES_PER_WORKER, batch_size, *image_set.image_size)
    workers = _start(image_set, slots, num_workers)
    stop = Finalize(None, _stop, (workers,), exitpriority=0)  # runs at exit if this generator is never closed
    pending: deque[tuple[int, np.ndarray]] = deque()
    try:
        for slot, rows in zip(cycle(range(len(slots))), batches, strict=False):
            if len(pending) == len(slots):
                yield _finished(workers, slots, *pending.popleft())
            workers[slot % num_workers].request(slot, rows)
            pending.append((slot, rows))
        while pending:
            yield _finished(workers, slots, *pending.popleft())
    finally:
        stop()


@dataclass(frozen=True)
class _Worker:
    pipe: Connection
    process: ForkProcess

    def request(self, slot: int, rows: np.ndarray) -> None:
        try:
            self.pipe.send((slot, rows))
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


def _finished(workers: list[_Worker], slots: Tensor, slot: int, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
    answer = workers[slot % len(workers)].answer()
    if isinstance(answer, CorecliError):
        raise answer
    if answer is not None:
        raise RuntimeError(f"in a worker process that decodes images: {answer}")
    return slots[slot, : len(rows)], rows


def _shared_images(num: int, batch: int, height: int, width: int) -> Tensor:
    memory = mmap.mmap(-1, num * batch * 3 * height * width)  # anonymous and shared: forked processes write into it
    return torch.frombuffer(memory, dtype=torch.uint8).view(num, batch, 3, height, width)


def _start(image_set: ImageSet, slots: Tensor, num_workers: int) -> list[_Worker]:
    context = multiprocessing.get_context("fork")
    workers: list[_Worker] = []
    for _ in range(num_workers):
        ours, theirs = context.Pipe()
        not_theirs = [*(worker.pipe for worker in workers), ours]
        process = context.Process(target=_work, args=(image_set, slots, theirs, not_theirs), daemon=True)
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


def _work(image_set: ImageSet, slots: Tensor, pipe: Connection, not_ours: list[Connection]) -> None:
    """Read the requested rows into the slots until the pipe sends None or closes because the main process died."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the main process handles them: it saves first
    for other in not_ours:
        other.close()
    torch.set_num_threads(1)  # a forked OpenMP pool does not work
    with contextlib.suppress(EOFError, OSError):
        while (request := pipe.recv()) is not None:
            slot, rows = request
            pipe.send(_read(image_set, rows, slots[slot]))


def _read(image_set: ImageSet, rows: np.ndarray, into: Tensor) -> CorecliError | str | None:
    """Return None, or an error as a value: a CorecliError itself, the traceback of any other."""
    try:
        into[: len(rows)] = image_set.read(rows)
    except CorecliError as error:
        return error
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return None
