"""The images to make: their rows, the conditions they are made from, and how they are cut into shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corecli.base.errors import DataError, UsageError
from corecli.base.rng import derive, numpy_generator
from corecli.commands.parts.inputs import shard as parse_shard
from corecli.data.rows import SYNTHETIC, Rows, make_rows, variant_key
from corecli.data.strings import pack

DEFAULT_NUM = 64


@dataclass(frozen=True, kw_only=True)
class Images:
    """The rows of the images to make, and for each image the row of its condition, int64 [N]."""

    rows: Rows
    source: np.ndarray

    def seeds(self, seed: int, start: int, stop: int) -> list[int]:
        """Return the noise seeds of some images: functions of (seed, key), where the key includes the variant."""
        return [derive(seed, "noise", key) for key in self.rows.keys[start:stop]]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which images to make: `num` in all or `per_row` for each of the chosen `rows`, taken in `order`."""

    num: int | None
    per_row: int | None
    rows: str | None
    order: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Cut:
    """N rows cut into `num` shards, and the indices of the requested ones."""

    num: int
    requested: tuple[int, ...]
    num_rows: int

    def rows(self, index: int) -> range:
        """Return the rows of a shard; the sizes of shards differ by at most one."""
        return range(index * self.num_rows // self.num, (index + 1) * self.num_rows // self.num)


def cut_of(shards: int | None, shard: str | None, num_rows: int) -> Cut | None:
    """Return how --shards or --shard cut N rows; None without them. Errors: UsageError."""
    requested = requested_shards(shards, shard)
    if requested is None:
        return None
    num, indices = requested
    if num > num_rows:
        raise UsageError(f"{num_rows} images cannot fill {num} shards", hint=f"use {num_rows} shards or fewer")
    return Cut(num=num, requested=indices, num_rows=num_rows)


def requested_shards(shards: int | None, shard: str | None) -> tuple[int, tuple[int, ...]] | None:
    """Return (number of shards, indices of those to make), None without shards. Errors: UsageError."""
    if shard is None:
        return None if shards is None else (shards, tuple(range(shards)))
    if shards is not None:
        raise UsageError("--shard I/N and --shards both give the number of shards", hint="give one of them")
    index, num = parse_shard(shard)
    return num, (index,)


def from_nothing(choice: Choice) -> Images:
    """Return numbered images without conditions."""
    num = choice.num or choice.per_row or DEFAULT_NUM
    rows = make_rows([f"{i:06d}" for i in range(num)], origins=SYNTHETIC)
    return Images(rows=rows, source=np.zeros(num, dtype=np.int64))


def from_rows(choice: Choice, rows: Rows, *, where: str | Path) -> Images:
    """Return the images made from rows: image i is variant i // R of row i modulo R, for R chosen rows.

    where: file of the rows, for errors. Errors: UsageError, DataError.
    """
    chosen = _ordered(choice, rows, _selected(choice.rows, len(rows)), where)
    num = choice.num if choice.num is not None else len(chosen) * (choice.per_row or 1)
    source = chosen[np.arange(num) % len(chosen)]
    variants = np.arange(num) // len(chosen)
    keys = pack(variant_key(key, v) for key, v in zip(rows.keys.take(source), variants.tolist(), strict=True))
    made = make_rows(
        keys, groups=rows.groups.take(source), labels=rows.labels[source], origins=SYNTHETIC, variants=variants
    )
    return Images(rows=made, source=source)


def _selected(text: str | None, num_rows: int) -> np.ndarray:
    """Return the row indices that --rows selects. Errors: UsageError."""
    everything = np.arange(num_rows)
    if text is None:
        return everything
    try:
        if ":" in text:
            chosen = everything[slice(*(int(part) if part else None for part in text.split(":")))]
        else:
            chosen = everything[[int(part) for part in text.split(",")]]
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise UsageError(f"--rows {text!r} selects no rows of {num_rows}", hint="use 0:100, ::10 or 0,5,9") from error
    if not len(chosen):
        raise UsageError(f"--rows {text!r} selects no rows of {num_rows}", hint="use 0:100, ::10 or 0,5,9")
    return chosen


def _ordered(choice: Choice, rows: Rows, chosen: np.ndarray, where: str | Path) -> np.ndarray:
    if choice.order == "table":
        return chosen
    shuffled = numpy_generator(choice.seed, "rows").permutation(chosen)
    if choice.order == "shuffle":
        return shuffled
    labels = rows.labels[shuffled]
    if (labels < 0).any():
        raise DataError("rows without labels", where=where, hint="--order class-balanced needs labels")
    turn = np.zeros(len(shuffled), dtype=np.int64)  # index of each row within its class
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return shuffled[np.lexsort((labels, turn))]
