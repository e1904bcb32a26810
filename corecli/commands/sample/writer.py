"""Write a set of generated images, as a whole or in shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corecli.base.errors import DataError
from corecli.base.outcome import Outcome, produced
from corecli.commands.sample.images import Cut
from corecli.commands.sample.pipeline import Pipelines
from corecli.commands.sample.similarity import Judge
from corecli.commands.sample.trained import Trained
from corecli.data.formats.shards import ShardFolder, Statistics
from corecli.data.imageset import check_keys, is_written, open_set, write_set
from corecli.data.rows import Rows
from corecli.engine.dist import World, barrier, sum_over_ranks
from corecli.engine.run import clear_work, open_folder
from corecli.engine.shards import Shards
from corecli.engine.signals import StopAtOnce
from corecli.views.resample import resized_crop

WORK_ROWS = 256  # images per file in the run folder, the most that a killed process loses
_NOTHING_NEW = "already there, left alone"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The set to write.

    format: None for the one of the suffix; image_size: shorter side in pixels, None for the generator's; settings: the
    config for the header; identity: what makes two sets the same; guidance: for the report.
    """

    out: Path
    format: str | None
    image_size: int | None
    batch_size: int
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    guidance: float | None
    force: bool
    quiet: bool


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some of the images, and the file or directory they are written to by all processes of `world`."""

    out: Path
    rows: range
    identity: dict[str, Any]
    format: str | None
    label: str
    world: World


class Maker:
    """Makes the images of a source and writes them.

    Errors: DataError, UsageError, CannotCreateError, StorageError, InterruptedAfterSaving.
    """

    def __init__(self, target: Target, source: Pipelines | Trained, judge: Judge | None, world: World) -> None:
        self._target, self._source, self._judge, self._world = target, source, judge, world
        self._inputs = {**source.inputs, "encoder": judge.fingerprint if judge else None}
        self._identity = {**target.identity, **self._inputs}
        self._started, self._made, self._dropped = time.monotonic(), 0, 0

    def make(self, cut: Cut | None) -> Outcome:
        """Write the set, or its missing shards."""
        check_keys(self._target.out, self._source.images.rows, format=self._target.format)  # before images are made
        return self._make_whole() if cut is None else self._make_shards(cut)

    def _make_whole(self) -> Outcome:
        target, total = self._target, len(self._source.images.rows)
        if is_written(target.out, self._identity, force=target.force):
            clear_work(target.out)
            return produced(target.out, notes=(_NOTHING_NEW,), num=len(open_set(target.out).rows))
        part = _Part(
            out=target.out,
            rows=range(total),
            identity=self._identity,
            format=target.format,
            label="sample",
            world=self._world,
        )
        self._write(part)
        return self._outcome(target.out, num=total - self._dropped)

    def _make_shards(self, cut: Cut) -> Outcome:
        """Make the missing shards: each process makes whole shards, or all share one if there are too few."""
        target, world = self._target, self._world
        folder = ShardFolder(target.out, num=cut.num, format=target.format or "tar")
        identity = {**self._identity, "shards": cut.num, "format": folder.format}
        with StopAtOnce("finished shards are kept"):
            todo = _missing(folder, cut, identity, world, force=target.force)
            apart = len(todo) >= world.size > 1
            team = replace(world, rank=0, size=1, store=None) if apart else world
            for index in todo[world.rank :: world.size] if apart else todo:
                part = _Part(
                    out=folder.path(index),
                    rows=cut.rows(index),
                    identity=identity,
                    format=folder.format,
                    label=f"sample {folder.path(index).name}",
                    world=team,
                )
                self._write(part, lambda statistics, index=index: folder.finish_shard(index, statistics))
            if apart:
                counts = torch.tensor([self._made, self._dropped])
                self._made, self._dropped = sum_over_ranks(counts).tolist()
            barrier(world)
            if world.is_main and not folder.missing() and not folder.is_finished():
                if not any(folder.record(index)["num"] for index in range(cut.num)):
                    raise self._nothing_left()
                folder.finish(class_names=self._source.class_names, header=self._header(identity))
        return self._outcome_of_shards(folder, cut, new=bool(todo))

    @cached_property
    def _ready(self) -> Any:
        return self._source.prepare(self._world)

    def _write(self, part: _Part, record: Callable[[Statistics], None] | None = None) -> None:
        """Make the images of a part and write those that are kept; `record` receives statistics of their colors."""
        target, rows = self._target, part.rows
        of_images = {name: value for name, value in part.identity.items() if name != "min_similarity"}
        folder = open_folder(part.out, of_images, part.world, force=target.force)

        def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
            return self._images((rows.start + start, rows.start + stop) for start, stop in batches)

        with Shards(folder, num_rows=len(rows), shard_size=WORK_ROWS, world=part.world) as shards:
            quiet = target.quiet or not self._world.is_main
            self._made += shards.compute(make, label=part.label, batch_size=target.batch_size, quiet=quiet)
            if part.world.is_main:
                statistics = Statistics()
                kept, chunks = self._kept(rows, shards)
                self._dropped += len(rows) - len(kept)
                if not len(kept) and record is None:
                    raise self._nothing_left("; the images are kept for another try")
                if len(kept):
                    watched = statistics.watch(chunks) if record else chunks
                    header = self._header(part.identity)
                    names = self._source.class_names
                    write_set(part.out, kept, watched, class_names=names, header=header, format=part.format)
                if record:
                    record(statistics)

    def _images(self, batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the tensors of batches (start, stop) of images."""
        batches, again = tee(batches)
        for (start, stop), made in zip(again, self._ready.make(batches), strict=True):
            images = _resized(made, self._target.image_size)
            judged = {} if self._judge is None else {"similarity": self._judge.similarity(images, start, stop)}
            yield {"images": images, **judged}

    def _kept(self, rows: range, shards: Shards) -> tuple[Rows, Iterator[torch.Tensor]]:
        """Return the rows to write and their images."""
        every = self._source.images.rows.take(np.arange(rows.start, rows.stop))
        if self._judge is None:
            return every, (shard["images"] for shard in shards.read())
        keeps, similarity = self._judge.keeps, shards.read_column("similarity")
        measured = replace(every, similarity=similarity.numpy())
        chunks = (shard["images"][keeps(shard["similarity"])] for shard in shards.read())
        return measured.take(keeps(similarity).nonzero().flatten().numpy()), (chunk for chunk in chunks if len(chunk))

    def _nothing_left(self, more: str = "") -> DataError:
        lowest = self._judge.min_similarity if self._judge else None
        return DataError(f"no image has a similarity of {lowest:g}", hint=f"lower --min-similarity{more}")

    def _header(self, identity: dict[str, Any]) -> dict[str, Any]:
        settings = dict(self._target.settings)
        return {"config": settings, "identity": identity, "parents": self._inputs, "sampler": self._ready.sampler}

    def _outcome_of_shards(self, folder: ShardFolder, cut: Cut, *, new: bool) -> Outcome:
        """Return the outcome of one shard, with its file, or of several, with the directory."""
        num = sum(folder.record(index)["num"] for index in cut.requested)
        there = cut.num - len(folder.missing())
        notes = (f"{there} of {cut.num} shards are there",) if there < cut.num else ()
        out = folder.path(cut.requested[0]) if len(cut.requested) < cut.num else folder.root
        if new:
            return self._outcome(out, num=num, notes=notes)
        return produced(out, notes=(_NOTHING_NEW, *notes), num=num)

    def _outcome(self, out: Path, *, num: int, notes: tuple[str, ...] = ()) -> Outcome:
        """Return what was written, and the images per second since the start of the run."""
        seconds = time.monotonic() - self._started
        if self._dropped and self._judge:
            low = f"{self._dropped} images are below a similarity of {self._judge.min_similarity:g}"
            notes = (f"{low} and were left out", *notes)
        return produced(
            out,
            notes=(*self._ready.notes, *notes),
            num=num,
            sampler=self._ready.sampler,
            guidance=self._target.guidance,
            dropped=self._dropped,
            seconds=round(seconds, 3),
            images_per_sec=self._made / seconds,
        )


def _missing(folder: ShardFolder, cut: Cut, identity: dict[str, Any], world: World, *, force: bool) -> list[int]:
    """Return the indices of requested shards that are missing, the same on all processes."""
    if world.is_main:
        folder.begin(identity, replace=force and len(cut.requested) == cut.num)
        for index in cut.requested if force else ():
            folder.drop_shard(index)
        folder.clear_shards(cut.requested)
    barrier(world)
    todo = sorted(set(folder.missing()) & set(cut.requested))
    if world.is_main:
        for index in set(cut.requested) - set(todo):
            clear_work(folder.path(index))
    barrier(world)  # no process may list the folder while another already fills it
    return todo


def _resized(images: torch.Tensor, size_px: int | None) -> torch.Tensor:
    """Return the central squares of images, uint8 [B, 3, size_px, size_px], antialiased."""
    if size_px is None or tuple(images.shape[-2:]) == (size_px, size_px):
        return images
    height, width = images.shape[-2:]
    side = min(height, width)
    box = np.array([(height - side) // 2, (width - side) // 2, side, side], dtype=np.int64)
    boxes, unflipped = np.tile(box, (len(images), 1)), np.zeros(len(images), dtype=bool)
    return (resized_crop(images, boxes, unflipped, (size_px, size_px)) * 255).round().to(torch.uint8)
