"""Which images are to be made, and from which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corecli.base.errors import DataError, UsageError
from corecli.base.rng import derive, numpy_generator
from corecli.commands.parts.inputs import shard
from corecli.data.rows import SYNTHETIC, Rows, make_rows, variant_key

if TYPE_CHECKING:
    from corecli.commands.sample.options import Config

DEFAULT_NUM = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The rows of the images to be made, and for each the row of the condition it is made from."""

    rows: Rows
    source: np.ndarray

    def seeds(self, seed: int, start: int, stop: int) -> list[int]:
        """The noise seeds of some images: functions of (seed, key), and the key ends in the variant."""
        return [derive(seed, "noise", key) for key in self.rows.keys[start:stop]]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The rows of a plan cut into `num` shards, and which of them are asked for."""

    num: int
    asked: tuple[int, ...]
    num_rows: int

    def rows(self, index: int) -> range:
        """The rows of a shard; shards differ by one row at most."""
        return range(index * self.num_rows // self.num, (index + 1) * self.num_rows // self.num)


def cut_of(config: Config, num_rows: int) -> Cut | None:
    """How --shards or --shard cuts a plan, None for one file or directory. Errors: UsageError."""
    asked = shards_asked(config)
    if asked is None:
        return None
    num, indices = asked
    if num > num_rows:
        raise UsageError(f"{num} shards of {num_rows} images", hint="ask for fewer shards")
    return Cut(num=num, asked=indices, num_rows=num_rows)


def shards_asked(config: Config) -> tuple[int, tuple[int, ...]] | None:
    """(how many shards, the numbers of those to make), None without. Errors: UsageError."""
    if config.shard is None:
        return None if config.shards is None else (config.shards, tuple(range(config.shards)))
    if config.shards is not None:
        raise UsageError("--shard I/N says how many shards there are, as --shards does", hint="give one of them")
    index, num = shard(config.shard)
    return num, (index,)


def from_nothing(config: Config) -> Plan:
    """As many images as asked for, numbered."""
    num = config.num or config.per_row or DEFAULT_NUM
    rows = make_rows([f"{i:06d}" for i in range(num)], origins=SYNTHETIC)
    return Plan(rows=rows, source=np.zeros(num, dtype=np.int64))


def from_rows(config: Config, rows: Rows) -> Plan:
    """`num` images, or `per_row` of each chosen row: image i is variant i // R of the i-th of R rows, modulo R.

    Errors: UsageError, DataError.
    """
    chosen = _ordered(config, rows, _selected(config.rows, len(rows)))
    num = config.num if config.num is not None else len(chosen) * (config.per_row or 1)
    source = chosen[np.arange(num) % len(chosen)]
    variants = np.arange(num) // len(chosen)
    groups = [rows.groups[i] for i in source]
    keys = [variant_key(rows.keys[i], v) for i, v in zip(source.tolist(), variants.tolist(), strict=True)]
    made = make_rows(keys, groups=groups, labels=rows.labels[source], origins=SYNTHETIC, variants=variants)
    return Plan(rows=made, source=source)


def _selected(text: str | None, num_rows: int) -> np.ndarray:
    """The row numbers that --rows names. Errors: UsageError."""
    everything = np.arange(num_rows)
    if text is None:
        return everything
    try:
        if ":" in text:
            chosen = everything[slice(*(int(part) if part else None for part in text.split(":")))]
        else:
            chosen = everything[[int(part) for part in text.split(",")]]
    except (ValueError, IndexError, TypeError) as error:
        raise UsageError(f"--rows {text!r} names no rows of {num_rows}", hint="write 0:100, ::10 or 0,5,9") from error
    if not len(chosen):
        raise UsageError(f"--rows {text!r} names no rows of {num_rows}")
    return chosen


def _ordered(config: Config, rows: Rows, chosen: np.ndarray) -> np.ndarray:
    if config.order == "table":
        return chosen
    shuffled = numpy_generator(config.seed, "rows").permutation(chosen)
    if config.order == "shuffle":
        return shuffled
    labels = rows.labels[shuffled]
    if (labels < 0).any():
        where = config.features or config.images or config.captions
        raise DataError("rows without labels", where=where, hint="class-balanced order needs them")
    turn = np.zeros(len(shuffled), dtype=np.int64)  # the how-many-eth of its class each row is
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return shuffled[np.lexsort((labels, turn))]
