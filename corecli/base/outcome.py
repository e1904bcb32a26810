"""The result of a verb: lines for stdout, records for `--json`, notes for stderr."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corecli.base.errors import CorecliError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a verb prints: `lines` on stdout, or `records` with `--json` (one object per line); `notes` on stderr.

    With `for_people` the lines are printed on a terminal only; a pipe receives the records. A verb that found something
    wrong gives it as `failure`, which is reported after the lines and decides the exit code.
    """

    lines: tuple[str, ...] = ()
    records: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = field(default=())
    for_people: bool = False
    failure: CorecliError | None = None


def produced(path: Path, *, notes: tuple[str, ...] = (), **facts: Any) -> Outcome:
    """Return the outcome of a verb that wrote `path`: the path, and with `--json` the facts about it."""
    return Outcome(lines=(str(path),), records=({"path": str(path), **facts},), notes=notes)


def scored(scores: dict[str, float], *, notes: tuple[str, ...] = (), **facts: Any) -> Outcome:
    """Return the outcome of a verb that measured: `name<TAB>value` lines, or with `--json` one object."""
    lines = tuple(f"{name}\t{value:.6g}" for name, value in scores.items())
    return Outcome(lines=lines, records=({**scores, **facts},), notes=notes)


def escaped(text: str) -> str:
    """Return text for a terminal on one line: control characters and the like, except tabs, become escapes: \\x1b."""
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def without_user(text: str) -> str:
    """Return text that is printed for an option; a URL without its user and password."""
    return re.sub(r"^([A-Za-z][\w+.-]*://)[^/?#]*@", r"\1", text)


def _is_control(character: str) -> bool:
    return character != "\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def to_json_line(record: dict[str, Any]) -> str:
    """Return a record as JSON on one line; floats have full precision, NaN and infinity become null.

    File names that are not UTF-8 have escapes.
    """
    line = json.dumps(_finite(record), ensure_ascii=False)
    return line if _is_utf8(line) else json.dumps(_finite(record))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, Path) else value
