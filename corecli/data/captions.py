"""Read captions from a file: JSON lines, plain text with one caption per line, or CSV of image paths and captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.documents import loads, read_rows, read_text
from corecli.base.errors import DataError
from corecli.data.decode import EXTENSIONS
from corecli.data.rows import Rows, make_rows

_TEXT = ("caption", "text")  # the first of these keys that a line has
_LINES = (
    'write an object such as {"id": "dog-1", "caption": "a dog in the snow"} on every line, or plain text on every line'
)


@dataclass(frozen=True, kw_only=True)
class Captions:
    """N captions in the order of the file. The id of a caption is the group of its images.

    classes: class name of the images of each caption, "" if the file has none.
    """

    ids: list[str]
    texts: list[str]
    classes: list[str]

    def rows(self, where: Path) -> tuple[Rows, tuple[str, ...]]:
        """Return one row per caption, and the sorted class names. Errors: DataError for duplicate ids."""
        names = tuple(sorted(set(self.classes) - {""}))
        number = {"": -1, **{name: i for i, name in enumerate(names)}}
        labels = np.array([number[name] for name in self.classes], dtype=np.int64)
        return make_rows(self.ids, groups=self.ids, labels=labels, where=where), names


def read_captions(path: Path) -> Captions:
    """Read captions: JSON objects with `caption` (or `text`), `id` and `class`; plain text; or StableRep's CSV.

    The default id is the number of the caption, from 000000; in CSV it is the image path without its extension. Blank
    lines are ignored; `Captions.rows` finds duplicate ids. Errors: MissingInputError; DataError naming the line.
    """
    path = Path(path)
    if path.suffix == ".csv":
        listed = read_listed(path)
        ids, texts = [name.rpartition(".")[0] for name, _ in listed], [text for _, text in listed]
        return Captions(ids=ids, texts=texts, classes=[""] * len(ids))
    lines = _text(path).split("\n")  # splitlines would split a caption at U+2028
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise DataError("the file has no captions", where=path, hint=_LINES)
    is_json = any(line.startswith("{") for _, line in found)  # even if some lines are damaged
    read = [_object(path, *line) if is_json else ("", line[1], "") for line in found]
    ids = [name or f"{i:06d}" for i, (name, _, _) in enumerate(read)]
    return Captions(ids=ids, texts=[text for _, text, _ in read], classes=[label for _, _, label in read])


def read_listed(path: Path) -> list[tuple[str, str]]:
    """Return (image path, caption) for every line of a CSV with two columns.

    A first line that names no image is a header. Errors: MissingInputError; DataError naming the line.
    """
    found = []
    for number, cells in read_rows(_text(path).split("\n"), where=path):
        if not cells:
            continue
        is_image = cells[0].rpartition(".")[2].lower() in EXTENSIONS
        if not is_image and number == 1:
            continue
        if not is_image or len(cells) != 2 or not cells[1].strip():
            hint = 'write a path and a caption, such as 000/01.png,"a dog, in the snow"'
            raise DataError(f"line {number} is not an image path with a caption", where=path, hint=hint)
        found.append((cells[0], cells[1].strip()))
    if not found:
        raise DataError("the file has no captions", where=path)
    return found


def _text(path: Path) -> str:
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n")


def _object(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """Return (id or "", caption, class or "") of one line."""
    try:
        record: Any = loads(line)
    except ValueError as error:
        raise DataError(f"line {number} is not JSON: {error}", where=path, hint=_LINES) from error
    texts = [record.get(key) for key in _TEXT if key in record] if isinstance(record, dict) else []
    if not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise DataError(f"line {number} has no caption", where=path, hint=_LINES)
    name = record.get("id", "")
    if not isinstance(name, str | int):
        raise DataError(f"the id of line {number} is neither a string nor a number", where=path)
    label = record.get("class") or ""
    if not isinstance(label, str):
        raise DataError(f"the class of line {number} is not a string", where=path)
    return str(name), texts[0], label
