"""Captions in a file: JSON lines, plain text with one caption a line, or a CSV of images' paths and captions."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.errors import DataError
from corecli.base.files import missing
from corecli.data.decode import EXTENSIONS
from corecli.data.rows import Rows, make_rows

_TEXT = ("caption", "text")  # the first of these keys that a line has
_LINES = 'each line is an object such as {"id": "dog-1", "caption": "a dog in the snow"}, or each is plain text'


@dataclass(frozen=True, kw_only=True)
class Captions:
    """N captions in the order of the file, each with an id of its own that names the group of its images.

    classes: the class that the images of each are of, "" where the file does not tell.
    """

    ids: list[str]
    texts: list[str]
    classes: list[str]

    def rows(self, where: Path) -> tuple[Rows, tuple[str, ...]]:
        """A row for each caption, and the names of their classes, sorted. Errors: DataError for duplicate ids."""
        names = tuple(sorted(set(self.classes) - {""}))
        number = {"": -1, **{name: i for i, name in enumerate(names)}}
        labels = np.array([number[name] for name in self.classes], dtype=np.int64)
        return make_rows(self.ids, groups=self.ids, labels=labels, where=where), names


def read_captions(path: Path) -> Captions:
    """Captions of a file: objects with `caption` (or `text`), `id` and `class`, one a line; text; or StableRep's CSV.

    An id that is not told is the caption's number, 000000 the first; in a .csv it is the path without its extension.
    Blank lines are passed over, and duplicate ids are found where rows are made of them. Errors: MissingInputError;
    DataError naming the line.
    """
    path = Path(path)
    if path.suffix == ".csv":
        listed = read_listed(path)
        ids, texts = [name.rpartition(".")[0] for name, _ in listed], [text for _, text in listed]
        return Captions(ids=ids, texts=texts, classes=[""] * len(ids))
    lines = _text(path).split("\n")  # splitlines would part a caption at U+2028
    told = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not told:
        raise DataError("holds no captions", where=path, hint=_LINES)
    is_json = any(line.startswith("{") for _, line in told)  # whichever of its lines are damaged
    read = [_object(path, *line) if is_json else ("", line[1], "") for line in told]
    ids = [name or f"{i:06d}" for i, (name, _, _) in enumerate(read)]
    return Captions(ids=ids, texts=[text for _, text, _ in read], classes=[label for _, _, label in read])


def read_listed(path: Path) -> list[tuple[str, str]]:
    """(image path, caption) of every line of a CSV of two columns; a first line that names no image is its header.

    Errors: MissingInputError; DataError naming the line.
    """
    reader, found = csv.reader(_text(path).split("\n")), []
    for cells in reader:
        if not cells:
            continue
        is_image = cells[0].rpartition(".")[2].lower() in EXTENSIONS
        if not is_image and reader.line_num == 1:
            continue
        if not is_image or len(cells) != 2 or not cells[1].strip():
            hint = 'a line is a path and a caption, such as 000/01.png,"a dog, in the snow"'
            raise DataError(f"line {reader.line_num} is no image with its caption", where=path, hint=hint)
        found.append((cells[0], cells[1].strip()))
    if not found:
        raise DataError("holds no captions", where=path)
    return found


def _text(path: Path) -> str:
    if not path.is_file():
        raise missing(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("not a text file in utf-8", where=path) from error


def _object(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """(id or nothing, caption, class or nothing) of one line."""
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"line {number} is not JSON: {error}", where=path, hint=_LINES) from error
    texts = [record.get(key) for key in _TEXT if key in record] if isinstance(record, dict) else []
    if not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise DataError(f"line {number} holds no caption", where=path, hint=_LINES)
    name = record.get("id", "")
    if not isinstance(name, str | int):
        raise DataError(f"the id of line {number} is neither a word nor a number", where=path)
    label = record.get("class") or ""
    if not isinstance(label, str):
        raise DataError(f"the class of line {number} is not a word", where=path)
    return str(name), texts[0], label
