"""Draw an image set as a contact sheet.

A set whose groups have several members, or any set with --real, is drawn by group: one column a group, its real image
on top and its synthetic members below, as in CORE's Figure 7. Other sets are drawn as a plain grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.config import Common, Preset, option
from corecli.base.errors import DataError
from corecli.base.outcome import Outcome, produced
from corecli.commands import _inputs
from corecli.data.imageset import open_set

if TYPE_CHECKING:
    import torch

    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World

EXAMPLES = (
    ("Samples below the real images they were made from", "syn --real DIR --out sheet.png"),
    ("The first images of a set", "DIR --columns 16 --out grid.png"),
)
PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli show`."""

    data: str = option(help="image set to draw", role="input", metavar="SET", positional=True)
    out: Path = option(help="picture to write", role="output", metavar="FILE.png")
    real: str | None = option(None, help="the real images the groups came from", role="input", metavar="SET")
    columns: int = option(10, help="columns of the sheet", minimum=1)
    rows: int = option(6, help="at most this many images below each other", minimum=1)
    image_size: int | None = option(None, help="resize to this", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """What would be drawn. Errors: MissingInputError, DataError, CannotCreateError."""
    _inputs.check_replaceable(config.out, ("image",), force=config.force)
    data = open_set(config.data, image_size=config.image_size)
    if config.real is not None:
        open_set(config.real, image_size=config.image_size)
    return {"num": len(data.rows), "out": str(config.out)}


def run(config: Config, world: World) -> Outcome:
    """Draw the sheet, replacing an earlier one. Errors: DataError, CannotCreateError."""
    from corecli.data.sheet import write_sheet

    data = open_set(config.data, image_size=config.image_size)
    real = open_set(config.real, image_size=config.image_size) if config.real else None
    if real is None and len(set(data.rows.groups)) == len(data.rows):
        images = data.read(np.arange(min(len(data.rows), config.columns * config.rows)))
        write_sheet(config.out, images, columns=config.columns)
    else:
        images, columns = _by_group(config, data, real)
        write_sheet(config.out, images, columns=columns, head_rows=int(real is not None))
    return produced(config.out)


def _by_group(config: Config, data: ImageSet, real: ImageSet | None) -> tuple[torch.Tensor, int]:
    """The images of evenly chosen groups, a column each, real ones first; and the number of columns."""
    import torch

    members: dict[str, list[int]] = {}
    for row, group in enumerate(data.rows.groups):
        members.setdefault(group, []).append(row)
    sources = {key: row for row, key in enumerate(real.rows.keys)} if real else {}
    groups = [g for g in members if real is None or g in sources]
    if not groups:
        raise DataError("holds none of the groups", where=config.real, hint=f"{config.data} was made from other images")
    chosen = [groups[i] for i in np.linspace(0, len(groups) - 1, min(config.columns, len(groups))).astype(int)]
    height = min(config.rows - int(real is not None), *(len(members[g]) for g in chosen))
    lines = [data.read(np.array([members[g][i] for g in chosen])) for i in range(height)]
    if real is not None:
        lines.insert(0, real.read(np.array([sources[g] for g in chosen])))
    return torch.cat(lines), len(chosen)
