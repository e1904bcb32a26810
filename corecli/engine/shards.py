"""Rows of work in shards: each finished shard is one renamed file in the run folder; a killed run redoes at most one.

The shard boundaries depend on the number of rows alone, so batches, and with them the results, are the same for any
number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from corecli.base import checkpoint
from corecli.base.errors import CorecliError, DataError, InterruptedAfterSaving
from corecli.engine.dist import World, any_rank, barrier
from corecli.engine.progress import Progress
from corecli.engine.signals import StopRequest

Tensors = dict[str, torch.Tensor]


class Shards:
    """`num_rows` rows cut into files of `shard_size` rows under `folder`."""

    def __init__(self, folder: Path, *, num_rows: int, shard_size: int) -> None:
        self.folder, self.num_rows, self.shard_size = folder, num_rows, shard_size
        self.num_shards = -(-num_rows // shard_size)

    def compute(
        self,
        make: Callable[[Iterator[tuple[int, int]]], Iterator[Tensors]],
        *,
        label: str,
        world: World,
        batch_size: int,
        quiet: bool,
    ) -> None:
        """Fill every missing shard, shards dealt out to the ranks in turn.

        `make` is given the (start, stop) rows of batches and yields the tensors of each, in order.
        Errors: InterruptedAfterSaving after a signal; finished shards are kept. An error before the first shard is
        finished leaves no folder behind.
        """
        try:
            self._compute(make, label, world, batch_size, quiet)
        except CorecliError:
            if world.is_main and not any(self._path(i).exists() for i in range(self.num_shards)):
                self.remove()
            raise

    def read(self) -> Iterator[Tensors]:
        """The shards in row order."""
        for index in range(self.num_shards):
            yield checkpoint.load(self._path(index), kind="shard")[0]

    def remove(self) -> None:
        """Delete the run folder once the target is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _compute(
        self,
        make: Callable[[Iterator[tuple[int, int]]], Iterator[Tensors]],
        label: str,
        world: World,
        batch_size: int,
        quiet: bool,
    ) -> None:
        if world.is_main:
            self._delete_damaged()
        barrier(world)
        missing = [i for i in range(self.num_shards) if not self._path(i).exists()]
        barrier(world)  # no rank may list the folder while another already fills it
        mine = missing[world.rank :: world.size]
        batches = {index: self._batches(index, batch_size) for index in mine}
        made = make(batch for index in mine for batch in batches[index])
        todo = sum(stop - start for index in mine for start, stop in batches[index])
        shown = world.is_main and not quiet
        with StopRequest() as stop, Progress(label, total=todo, shown=shown) as progress:
            for index in mine:
                if not self._fill(index, batches[index], made, stop, progress):
                    break
            stopped = any_rank(int(stop.asked), world)
        if stopped:
            raise InterruptedAfterSaving("stopped, finished shards are kept", hint="the same line resumes")

    def _fill(
        self,
        index: int,
        batches: list[tuple[int, int]],
        made: Iterator[Tensors],
        stop: StopRequest,
        progress: Progress,
    ) -> bool:
        """Make one shard batch by batch; False when a signal came first."""
        parts: list[Tensors] = []
        for first, last in batches:
            if stop.asked:
                return False
            parts.append({name: t.cpu() for name, t in next(made).items()})
            progress.advance(last - first, images=last - first)
        tensors = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        checkpoint.save(self._path(index), tensors, kind="shard")
        return True

    def _delete_damaged(self) -> None:
        for index in range(self.num_shards):
            if self._path(index).exists():
                try:
                    checkpoint.load(self._path(index), kind="shard")
                except DataError:
                    self._path(index).unlink()

    def _batches(self, index: int, batch_size: int) -> list[tuple[int, int]]:
        first, last = index * self.shard_size, min((index + 1) * self.shard_size, self.num_rows)
        return [(start, min(start + batch_size, last)) for start in range(first, last, batch_size)]

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:06d}.safetensors"
