"""Captions in a file: JSON lines, or plain text with one caption a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corecli.base.errors import DataError
from corecli.base.files import missing

_TEXT = ("caption", "text")  # the first of these keys that a line has


@dataclass(frozen=True, kw_only=True)
class Captions:
    """N captions in the order of the file, each with an id of its own that names the group of its images."""

    ids: list[str]
    texts: list[str]


def read_captions(path: Path) -> Captions:
    """Captions of a file: objects with `caption` (or `text`) and `id`, one a line, or plain text.

    An id that is not told is the caption's number, 000000 the first. Blank lines are passed over, and duplicate ids are
    found where rows are made of them. Errors: MissingInputError; DataError naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise missing(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("not a text file in utf-8", where=path) from error
    told = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not told:
        raise DataError("holds no captions", where=path)
    is_json = told[0][1].startswith("{")
    read = [_object(path, *line) if is_json else ("", line[1]) for line in told]
    ids = [name or f"{i:06d}" for i, (name, _) in enumerate(read)]
    return Captions(ids=ids, texts=[text for _, text in read])


def _object(path: Path, number: int, line: str) -> tuple[str, str]:
    """(id or nothing, caption) of one line."""
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"line {number} is not JSON: {error}", where=path) from error
    texts = [record.get(key) for key in _TEXT if key in record] if isinstance(record, dict) else []
    if not texts or not isinstance(texts[0], str) or not texts[0].strip():
        hint = 'a line is an object such as {"id": "dog-1", "caption": "a dog in the snow"}'
        raise DataError(f"line {number} holds no caption", where=path, hint=hint)
    name = record.get("id", "")
    if not isinstance(name, str | int):
        raise DataError(f"the id of line {number} is neither a word nor a number", where=path)
    return str(name), texts[0]
