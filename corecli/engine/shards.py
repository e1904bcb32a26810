"""Work on rows in shards. A killed run repeats at most one shard per process.

Each finished shard is a file in the run folder. Shard boundaries depend only on the number of rows, so that batches,
and with them the results, are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open

from corecli.base import checkpoint
from corecli.base.errors import DataError
from corecli.engine.dist import World, barrier
from corecli.engine.progress import Progress
from corecli.engine.run import remove_folder
from corecli.engine.signals import StopAtOnce

Tensors = dict[str, torch.Tensor]


class Shards:
    """A context in which a target of `num_rows` rows is made, in files of `shard_size` rows under `folder`.

    A stop signal ends the context immediately with InterruptedAfterSaving. The folder is deleted once the target is in
    place, or if an error occurs before the first shard is finished.
    """

    def __init__(self, folder: Path, *, num_rows: int, shard_size: int, world: World) -> None:
        self.folder, self.num_rows, self.shard_size, self.world = folder, num_rows, shard_size, world
        self.num_shards = -(-num_rows // shard_size)
        self._stop = StopAtOnce("finished shards are kept")

    def __enter__(self) -> Shards:
        self._stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.world.is_main and (error is None or not any(self._path(i).exists() for i in range(self.num_shards))):
            remove_folder(self.folder)
        self._stop.__exit__(kind, error, trace)

    def compute(
        self,
        make: Callable[[Iterator[tuple[int, int]]], Iterator[Tensors]],
        *,
        label: str,
        batch_size: int,
        quiet: bool,
    ) -> int:
        """Make all missing shards, which ranks take in turn; return the number of rows made by all ranks.

        `make` receives the (start, stop) rows of batches and yields the tensors of each batch, in order.
        """
        if self.world.is_main:
            self._delete_damaged()
        barrier(self.world)
        missing = [i for i in range(self.num_shards) if not self._path(i).exists()]
        barrier(self.world)  # no rank may list the folder after another one has started to fill it
        mine = missing[self.world.rank :: self.world.size]
        batches = {index: self._batches(index, batch_size) for index in mine}
        made = make(batch for index in mine for batch in batches[index])
        todo, here = self._num_rows_of(missing), self._num_rows_of(mine)
        shown, share = self.world.is_main and not quiet, here / max(todo, 1)
        with Progress(label, total=self.num_rows, done=self.num_rows - todo, share=share, shown=shown) as progress:
            for index in mine:
                self._fill(index, batches[index], made, progress)
            barrier(self.world)
        return todo

    def read(self) -> Iterator[Tensors]:
        """Yield the shards in row order."""
        for index in range(self.num_shards):
            yield checkpoint.load(self._path(index), kind="shard")[0]

    def read_column(self, name: str) -> torch.Tensor:
        """Return one of the tensors for all rows, without reading the others."""
        parts = []
        for index in range(self.num_shards):
            with safe_open(self._path(index), "pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts)

    def _fill(self, index: int, batches: list[tuple[int, int]], made: Iterator[Tensors], progress: Progress) -> None:
        parts: list[Tensors] = []
        for first, last in batches:
            parts.append({name: t.cpu() for name, t in next(made).items()})
            self._stop.check()
            progress.advance(last - first, images=last - first)
        tensors = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        checkpoint.save(self._path(index), tensors, kind="shard")

    def _delete_damaged(self) -> None:
        for index in range(self.num_shards):
            if self._path(index).exists():
                try:
                    checkpoint.load(self._path(index), kind="shard")
                except DataError:
                    self._path(index).unlink()

    def _bounds(self, index: int) -> tuple[int, int]:
        return index * self.shard_size, min((index + 1) * self.shard_size, self.num_rows)

    def _num_rows_of(self, indices: list[int]) -> int:
        return sum(stop - start for start, stop in map(self._bounds, indices))

    def _batches(self, index: int, batch_size: int) -> list[tuple[int, int]]:
        first, last = self._bounds(index)
        return [(start, min(start + batch_size, last)) for start in range(first, last, batch_size)]

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:06d}.safetensors"
