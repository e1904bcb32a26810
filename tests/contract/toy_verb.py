"""Count the images of a set.

The number goes to stdout, or to a file with --out. Classes are counted apart with --by-class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base.config import Common, Preset, option
from corecli.base.files import write_json
from corecli.base.outcome import Outcome
from corecli.data.imageset import open_set

SUMMARY = "count the images of a set"
PLACE = 3
IS_ALONE = True
EXAMPLES = (("Digits by class", "--data digits:8 --by-class"),)
PRESETS: dict[str, Preset] = {"classes": {"by_class": True}}


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli toy-verb`."""

    data: str = option(help="image set to count", role="input", metavar="SET")
    out: Path | None = option(None, help="file to write the numbers to", role="output", metavar="FILE.json")
    by_class: bool = option(False, help="count every class")
    unit: Literal["images", "thousands"] = option("images", help="unit of the numbers")


def check(config: Config) -> dict[str, Any]:
    return {"num": len(open_set(config.data).rows)}


def run(config: Config) -> Outcome:
    data, scale = open_set(config.data), {"images": 1, "thousands": 1000}[config.unit]
    counts = {"num": len(data.rows) / scale}
    if config.by_class:
        counts |= {name: sum(data.rows.labels == label) / scale for label, name in enumerate(data.class_names)}
    if config.out is not None:
        write_json(config.out, counts)
    return Outcome(lines=tuple(f"{name}\t{count:g}" for name, count in counts.items()), records=(counts,))
