"""Load batches of images to the device, one step ahead of their use.

A memory-mapped set is read by a thread of the main process, which costs less than a worker process. Files are decoded
by worker processes. A small set is read once and kept in memory. The batches are the same in every case.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from corecli.base.errors import UsageError
from corecli.data.imageset import StoredSet
from corecli.data.order import Order, positions, sequential_batches
from corecli.data.pictures import Picture
from corecli.data.workers import AVAILABLE, Filler, fill_by_workers

Workers = int | Literal["auto"]

_MAX_MEMORY_BYTES = 1 << 30  # a decoded set up to this size stays in memory
_MAX_GPU_FRACTION = 1 / 8  # of free memory that a set may use
_OPEN_AT_ONCE = 32  # encoded images that a process holds while it cuts their views


class Rank(Protocol):
    """What a loader needs to know about its process; engine.dist.World has it."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


class Chooser(Protocol):
    """Chooses the images that are shown for the rows of a batch: `members.Members`, `neighbors.Neighbors`."""

    @property
    def num_entries(self) -> int: ...

    def of(self, images: np.ndarray, epoch: tuple[int, int]) -> np.ndarray:
        """Return int64 [E, B]: the rows that E entries show for the rows `images` [B] in epoch (segment, its epoch)."""
        ...


class Cutter(Protocol):
    """Cuts views of fixed sizes out of images of any size; `commands.train_ssl.views` has one."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape [V, 3, h, w] of each kind of view, for one image."""
        ...

    def cut(self, pictures: list[list[Picture]], places: np.ndarray, step: int, into: tuple[Tensor, ...]) -> None:
        """Write the views of n images, for each entry a picture, at `places` [n] of the global batch."""
        ...


class Loader:
    """Iterate over (step, images, rows) of an order from `first_step` to its end, for one rank.

    images: uint8 [b, 3, H, W] on the rank's device. rows: int64 [b], the rank's share of the global batch, with
    b = batch_size / world.size: a contiguous slice of each of the `parts` in which the batch is processed. With
    `members` the images are [E, b, 3, H, W]: for each row one image per entry, chosen by `members`.
    workers: number of processes that decode, 0 for none; it never changes the result.

    Errors: UsageError if the processes do not divide the parts; while iterating, DataError naming a bad file.
    """

    def __init__(
        self,
        image_set: StoredSet,
        order: Order,
        *,
        world: Rank,
        members: Chooser | None = None,
        workers: Workers = "auto",
        first_step: int = 0,
        parts: int = 1,
    ) -> None:
        if order.batch_size % (parts * world.size):
            in_parts = f" in {parts} parts" if parts > 1 else ""
            reason = f"a batch of {order.batch_size} cannot be split equally among {world.size} processes{in_parts}"
            raise UsageError(reason, hint=f"use a batch size that is a multiple of {parts * world.size}")
        self._image_set, self._order, self._device = image_set, order, world.device
        self._members = members
        self._workers: Workers = workers
        self._mine = positions(order.batch_size, rank=world.rank, world_size=world.size, parts=parts)
        self._steps = range(first_step, order.total_steps)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[tuple[int, Tensor, np.ndarray]]:
        num_entries = 1 if self._members is None else self._members.num_entries
        held = _worth_holding(self._image_set, len(self._steps) * len(self._mine) * num_entries, self._device)
        ahead: deque[np.ndarray] = deque()  # rows of steps whose images are being read
        read = (_read_held if held else read_batches)(
            self._image_set, self._shown(ahead), device=self._device, workers=self._workers
        )
        for step, (images, _) in zip(self._steps, read, strict=True):
            rows = ahead.popleft()
            yield step, images if self._members is None else images.unflatten(0, (num_entries, len(rows))), rows

    def views(
        self, cutter: Cutter, picture: Callable[[int], Picture]
    ) -> Iterator[tuple[int, tuple[Tensor, ...], np.ndarray]]:
        """Iterate over (step, views, rows): uint8 [V, b, 3, h, w] for each of the cutter's shapes.

        Images may be of any size: the processes that decode them cut the views. picture: returns the image of a row.
        """
        filler = _Cuts(picture, cutter)
        for tensors, request in _filled(filler, self._requests(), device=self._device, workers=self._workers):
            yield request.step, tuple(tensor.transpose(0, 1) for tensor in tensors), request.rows

    def _requests(self) -> Iterator[_Request]:
        for step in self._steps:
            rows = self._order.batch(step)[self._mine]
            shown = rows[None] if self._members is None else self._members.of(rows, self._order.locate(step)[:2])
            yield _Request(step=step, rows=rows, shown=shown, places=self._mine)

    def _shown(self, ahead: deque[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the rows whose images each step shows, entry after entry; append the rows of the batch to `ahead`."""
        for step in self._steps:
            rows = self._order.batch(step)[self._mine]
            ahead.append(rows)
            yield rows if self._members is None else self._members.of(rows, self._order.locate(step)[:2]).ravel()


def read_batches(
    image_set: StoredSet, batches: Iterable[np.ndarray], *, device: torch.device, workers: Workers = "auto"
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yield (images uint8 [b, 3, H, W] on `device`, rows) for each batch of rows, in order and read ahead.

    No batch may be larger than the first. Errors: while iterating, DataError naming a bad file.
    """
    batches = iter(batches)
    if image_set.decodes and _num_workers(workers):
        for tensors, rows in _filled(Rows(image_set), batches, device=device, workers=workers):
            yield tensors[0], rows
        return
    for images, rows in _ahead(image_set.read, batches, pin=device.type == "cuda"):
        yield images.to(device, non_blocking=True), rows


@dataclass(frozen=True)
class Rows:
    """Fills a batch with the images of its rows."""

    image_set: StoredSet

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((3, *self.image_set.image_size),)

    def fill(self, request: np.ndarray, part: slice, into: tuple[Tensor, ...]) -> None:
        into[0][:] = self.image_set.read(request[part])


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The images of a step: its rows [b], the rows that E entries show [E, b], their places in the global batch [b]."""

    step: int
    rows: np.ndarray
    shown: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class _Cuts:
    """Fills a batch with views."""

    picture: Callable[[int], Picture]
    cutter: Cutter

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return self.cutter.shapes

    def fill(self, request: _Request, part: slice, into: tuple[Tensor, ...]) -> None:
        for start in range(part.start, part.stop, _OPEN_AT_ONCE):
            some = slice(start, min(start + _OPEN_AT_ONCE, part.stop))
            pictures = [[self.picture(row) for row in rows] for rows in request.shown[:, some].T.tolist()]
            views = tuple(tensor[some.start - part.start : some.stop - part.start] for tensor in into)
            self.cutter.cut(pictures, request.places[some], request.step, views)


def _filled(
    filler: Filler, requests: Iterator[Any], *, device: torch.device, workers: Workers
) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """Yield (tensors on `device`, request) for each request, filled by worker processes or by a thread."""
    first, pin = next(requests, None), device.type == "cuda"
    if first is None:
        return
    requests, num_workers = chain([first], requests), _num_workers(workers)
    if num_workers:
        filled = fill_by_workers(filler, requests, num_workers=num_workers, batch_size=len(first))
    else:
        filled = _ahead(lambda request: _fill(filler, request), requests, pin=False)
    for tensors, request in filled:
        own = (tensor.pin_memory() if pin else tensor.clone() if num_workers else tensor for tensor in tensors)
        yield tuple(tensor.to(device, non_blocking=True) for tensor in own), request


def _fill(filler: Filler, request: Any) -> tuple[Tensor, ...]:
    tensors = tuple(torch.empty(len(request), *shape, dtype=torch.uint8) for shape in filler.shapes)
    filler.fill(request, slice(0, len(request)), tensors)
    return tensors


def _ahead(read: Callable[[Any], Any], requests: Iterator[Any], *, pin: bool) -> Iterator[tuple[Any, Any]]:
    """Yield (what `read` returns, request) for each request; a thread reads one ahead."""

    def read_one(request: Any) -> tuple[Any, Any]:
        found = read(request)
        return (found.pin_memory() if pin else found), request

    first = next(requests, None)
    if first is None:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
        ahead = pool.submit(read_one, first)
        for request in requests:
            current, ahead = ahead, pool.submit(read_one, request)
            yield current.result()
        yield ahead.result()


def _num_workers(workers: Workers) -> int:
    """Return the number of processes that decode: with "auto" this rank's cores less one."""
    if not AVAILABLE:
        return 0
    if workers != "auto":
        return workers
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, cores // ranks_here - 1)


def _num_bytes(image_set: StoredSet, num_images: int) -> int:
    """Return the bytes of images, or of what a memory-mapped set stores instead of images."""
    height, width = image_set.image_size
    each = 3 * height * width if image_set.decodes else image_set.read(np.zeros(1, dtype=np.int64)).nbytes
    return each * num_images


def _worth_holding(image_set: StoredSet, num_images: int, device: torch.device) -> bool:
    """Whether to keep the whole set in memory: it fits, is shown at least once, and is faster to index there."""
    num_rows = len(image_set.rows)
    if num_images < num_rows:
        return False
    if device.type == "cuda":
        return _num_bytes(image_set, num_rows) <= _MAX_GPU_FRACTION * torch.cuda.mem_get_info(device)[0]
    return image_set.decodes and _num_bytes(image_set, num_rows) <= _MAX_MEMORY_BYTES


def _read_held(
    image_set: StoredSet, batches: Iterable[np.ndarray], *, device: torch.device, workers: Workers
) -> Iterator[tuple[Tensor, np.ndarray]]:
    num_rows = len(image_set.rows)
    held = torch.empty(0)
    for images, rows in read_batches(image_set, sequential_batches(num_rows, 256), device=device, workers=workers):
        if not len(held):
            held = torch.empty(num_rows, *images.shape[1:], dtype=images.dtype, device=device)
        held[rows[0] : rows[-1] + 1] = images
    for rows in batches:
        yield held.index_select(0, torch.from_numpy(rows).to(device, non_blocking=True)), rows
