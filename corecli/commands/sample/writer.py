"""From a plan to a written set of samples, whole or in shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corecli.base import config as cfg
from corecli.base.errors import DataError
from corecli.base.outcome import Outcome, produced
from corecli.commands.sample.plan import Cut, cut_of
from corecli.commands.sample.similarity import Judge
from corecli.data.formats.shards import ShardFolder, Statistics
from corecli.data.imageset import check_keys, is_written, open_set, write_set
from corecli.data.rows import Rows
from corecli.engine.dist import World, barrier, sum_over_ranks
from corecli.engine.run import clear_work, open_folder
from corecli.engine.shards import Shards
from corecli.engine.signals import StopAtOnce
from corecli.views.resample import resized_crop

if TYPE_CHECKING:
    from corecli.commands.sample.options import Config

WORK_ROWS = 256  # of a file in the run folder: what a killed process loses at most
_NOTHING_NEW = "already there, left alone"


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some rows of the plan, and the file or directory they are for; all of `world` makes it."""

    out: Path
    rows: range
    identity: dict[str, Any]
    format: str | None
    label: str
    world: World


class Maker:
    """Makes the images of a source's plan and writes them.

    Errors: DataError, UsageError, CannotCreateError, StorageError, InterruptedAfterSaving.
    """

    def __init__(self, config: Config, source: Any, world: World) -> None:
        self._config, self._source, self._world = config, source, world
        self._judge = Judge(config, source, world) if config.encoder else None
        self._inputs = {**source.inputs, "encoder": self._judge.fingerprint if self._judge else None}
        self._identity = cfg.identity(config, self._inputs)
        self._started, self._made, self._dropped = time.monotonic(), 0, 0

    def make(self) -> Outcome:
        """Write what is not there yet."""
        check_keys(self._config.out, self._source.plan.rows, format=self._config.format)  # before images are made
        cut = cut_of(self._config, len(self._source.plan.rows))
        return self._make_whole() if cut is None else self._make_shards(cut)

    def _make_whole(self) -> Outcome:
        config, total = self._config, len(self._source.plan.rows)
        if is_written(config.out, self._identity, force=config.force):
            clear_work(config.out)
            return produced(config.out, notes=(_NOTHING_NEW,), num=len(open_set(config.out).rows))
        part = _Part(
            out=config.out,
            rows=range(total),
            identity=self._identity,
            format=config.format,
            label="sample",
            world=self._world,
        )
        self._write(part)
        return self._outcome(config.out, num=total - self._dropped)

    def _make_shards(self, cut: Cut) -> Outcome:
        """The missing ones of some shards; processes take whole shards each, unless there are too few for that."""
        config, world = self._config, self._world
        folder = ShardFolder(config.out, num=cut.num, format=config.format or "tar")
        identity = {**self._identity, "shards": cut.num, "format": folder.format}
        with StopAtOnce("finished shards are kept"):
            todo = _begun(folder, cut, identity, world, force=config.force)
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
        """Make the images of a part and write those that are kept; `record` gets what there is to say of them."""
        config, rows, main = self._config, part.rows, part.world.is_main
        made_alike = {name: value for name, value in part.identity.items() if name != "min_similarity"}
        folder = open_folder(part.out, made_alike, part.world, force=config.force)

        def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
            return self._images((rows.start + start, rows.start + stop) for start, stop in batches)

        with Shards(folder, num_rows=len(rows), shard_size=WORK_ROWS, world=part.world) as shards:
            quiet = config.quiet or not self._world.is_main
            self._made += shards.compute(make, label=part.label, batch_size=config.batch_size, quiet=quiet)
            if main:
                statistics = Statistics()
                kept, chunks = self._kept(rows, shards)
                self._dropped += len(rows) - len(kept)
                if not len(kept) and record is None:
                    raise self._nothing_left("; what is made is kept for another try")
                if len(kept):
                    watched = statistics.watch(chunks) if record else chunks
                    header = self._header(part.identity)
                    names = self._source.class_names
                    write_set(part.out, kept, watched, class_names=names, header=header, format=part.format)
                if record:
                    record(statistics)

    def _images(self, batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        """The tensors of batches of rows of the plan."""
        batches, again = tee(batches)
        for (start, stop), made in zip(again, self._ready.make(batches), strict=True):
            images = _resized(made, self._config.image_size)
            judged = {} if self._judge is None else {"similarity": self._judge.similarity(images, start, stop)}
            yield {"images": images, **judged}

    def _kept(self, rows: range, shards: Shards) -> tuple[Rows, Iterator[torch.Tensor]]:
        """The rows to write and their images."""
        planned = self._source.plan.rows.take(np.arange(rows.start, rows.stop))
        if self._judge is None:
            return planned, (shard["images"] for shard in shards.read())
        keeps, similarity = self._judge.keeps, shards.read_column("similarity")
        measured = replace(planned, similarity=similarity.numpy())
        chunks = (shard["images"][keeps(shard["similarity"])] for shard in shards.read())
        return measured.take(keeps(similarity).nonzero().flatten().numpy()), (chunk for chunk in chunks if len(chunk))

    def _nothing_left(self, more: str = "") -> DataError:
        reason = f"no image has a similarity of {self._config.min_similarity:g}"
        return DataError(reason, hint=f"lower --min-similarity{more}")

    def _header(self, identity: dict[str, Any]) -> dict[str, Any]:
        config = cfg.settings(self._config)
        return {"config": config, "identity": identity, "parents": self._inputs, "sampler": self._ready.sampler}

    def _outcome_of_shards(self, folder: ShardFolder, cut: Cut, *, new: bool) -> Outcome:
        """Of one shard its file, else the directory."""
        num, there = sum(folder.record(index)["num"] for index in cut.asked), cut.num - len(folder.missing())
        notes = (f"{there} of {cut.num} shards are there",) if there < cut.num else ()
        out = folder.path(cut.asked[0]) if len(cut.asked) < cut.num else folder.root
        if new:
            return self._outcome(out, num=num, notes=notes)
        return produced(out, notes=(_NOTHING_NEW, *notes), num=num)

    def _outcome(self, out: Path, *, num: int, notes: tuple[str, ...] = ()) -> Outcome:
        """What was written, and how fast, from the start of the line to its end."""
        config, seconds = self._config, time.monotonic() - self._started
        if self._dropped:
            low = f"{self._dropped} images are below a similarity of {config.min_similarity:g}"
            notes = (f"{low} and were left out", *notes)
        return produced(
            out,
            notes=(*self._ready.notes, *notes),
            num=num,
            sampler=self._ready.sampler,
            guidance=config.guidance[0] if config.guidance else None,
            dropped=self._dropped,
            seconds=round(seconds, 3),
            images_per_sec=self._made / seconds,
        )


def _begun(folder: ShardFolder, cut: Cut, identity: dict[str, Any], world: World, *, force: bool) -> list[int]:
    """The numbers of shards that are asked for and missing, the same on all processes."""
    if world.is_main:
        folder.begin(identity, replace=force and len(cut.asked) == cut.num)
        for index in cut.asked if force else ():
            folder.drop_shard(index)
    barrier(world)
    todo = sorted(set(folder.missing()) & set(cut.asked))
    barrier(world)  # no process may list the folder while another already fills it
    return todo


def _resized(images: torch.Tensor, size_px: int | None) -> torch.Tensor:
    """Images uint8 [B, 3, H, W], their central squares as [B, 3, size_px, size_px], antialiased."""
    if size_px is None or tuple(images.shape[-2:]) == (size_px, size_px):
        return images
    height, width = images.shape[-2:]
    side = min(height, width)
    box = np.array([(height - side) // 2, (width - side) // 2, side, side], dtype=np.int64)
    boxes, unflipped = np.tile(box, (len(images), 1)), np.zeros(len(images), dtype=bool)
    return (resized_crop(images, boxes, unflipped, (size_px, size_px)) * 255).round().to(torch.uint8)
