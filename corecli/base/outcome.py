"""What a verb hands back for stdout: lines for people and pipes, records for `--json`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`lines` go to stdout, or `records` with `--json` (one object a line); `notes` go to stderr.

    Lines `for_people` go to a terminal only, and the records into a pipe.
    """

    lines: tuple[str, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default=())
    for_people: bool = False


def produced(path: Path, *, notes: tuple[str, ...] = (), **facts: Any) -> Outcome:
    """The outcome of a verb that wrote `path`: its path, and with `--json` the facts about it."""
    return Outcome(lines=(str(path),), records=({"path": str(path), **facts},), notes=notes)


def scored(scores: dict[str, float], *, notes: tuple[str, ...] = (), **facts: Any) -> Outcome:
    """The outcome of a verb that measured: `name<TAB>value` lines, and with `--json` all of it in one object."""
    lines = tuple(f"{name}\t{value:.6g}" for name, value in scores.items())
    return Outcome(lines=lines, records=({**scores, **facts},), notes=notes)


def to_json_line(record: dict[str, Any]) -> str:
    """One JSON object on one line, floats in full precision, NaN and infinity as null."""
    return json.dumps(_finite(record), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, Path) else value
