"""Lists of concepts and of backgrounds: the user's files, or ours by name."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.files import missing, read_json, sha256_file

LISTS = Path(__file__).parents[1] / "lists"
KINDS = ("object", "place", "texture")
_COLUMNS = ("concept", "source", "kind", "weight", "hypernym", "class")
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A word to write captions of, and its share of the captions; places and textures stand alone in theirs.

    label: the name of the class that its images are of, the concept itself unless the list says another.
    """

    name: str
    source: str
    kind: str
    share: float
    label: str
    hypernym: str = ""


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """Every concept of a line, their shares adding up to 1, the files they are from, and what was merged in them."""

    concepts: tuple[Concept, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def names() -> tuple[str, ...]:
    """The lists that need no file."""
    return tuple(sorted(path.stem for path in LISTS.glob("*.csv") if path.stem != "examples"))


def read_concepts(specs: Sequence[str]) -> Concepts:
    """Concepts of `FILE[:WEIGHT[:KIND]]`s: text, one a line, or CSV with a header line of `concept` and more.

    A weight is what share the file has beside the others; the column `weight` is what share a concept has in it.
    Duplicates in a file are merged, their weights added. Errors: MissingInputError, UsageError, DataError with a line.
    """
    parsed = [_parse(spec) for spec in specs]
    total = sum(weight for _, weight, _ in parsed)
    if total <= 0:
        raise UsageError("no list of concepts has a weight above 0")
    found: list[Concept] = []
    notes: list[str] = []
    for path, weight, kind in parsed:
        rows, merged = _merged(_read_rows(path, kind))
        whole = sum(row.share for row in rows)
        if not rows or whole <= 0:
            reason = "holds no concepts" if not rows else "no concept has a weight above 0"
            raise DataError(reason, where=path, hint="write one a line, or CSV with the column concept")
        found += [replace(row, share=row.share * weight / total / whole) for row in rows]
        if merged:
            told = ", ".join(merged[:_MOST_NAMED]) + (", ..." if len(merged) > _MOST_NAMED else "")
            notes.append(f"{path}: {len(merged)} concepts stand there more than once and were merged: {told}")
    return Concepts(concepts=tuple(found), files=tuple(path for path, _, _ in parsed), notes=tuple(notes))


def read_backgrounds(place: str) -> Mapping[str, Sequence[str]] | Sequence[str]:
    """Backgrounds by concept, hypernym or source, of a JSON dictionary; or a plain list of them for every concept.

    Errors: MissingInputError, DataError.
    """
    path = background_file(place)
    if path.suffix != ".json":
        return [concept.name for concept in read_concepts([str(path)]).concepts]
    told = read_json(path)
    if not isinstance(told, dict):
        raise DataError("is no dictionary of backgrounds", where=path, hint='write {"tiger": ["forest", "zoo"], ...}')
    for name, words in told.items():
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise DataError(f"the backgrounds of {name!r} are not a list of words", where=path)
    return {tidy(name): list(dict.fromkeys(map(tidy, words))) for name, words in told.items()}


def background_file(place: str) -> Path:
    """The file of a dictionary or list of backgrounds; `everyday` is the dictionary of our own list of that name."""
    return LISTS / "backgrounds.json" if place == "everyday" else _file(place)


def fingerprint(paths: Sequence[Path]) -> str:
    """The contents of some files, in order."""
    return " ".join(sha256_file(path)[:16] for path in paths)


def tidy(text: str) -> str:
    """A name as it is written in captions: without underscores and doubled spaces."""
    return " ".join(text.replace("_", " ").split())


def _parse(spec: str) -> tuple[Path, float, str]:
    """(file, weight, kind of concepts that do not tell their own)."""
    found = re.fullmatch(r"(?P<file>.*?)(:(?P<weight>[\d.eE+-]+))?(:(?P<kind>[a-z]+))?", spec, re.DOTALL)
    assert found is not None
    weight, kind = found["weight"] or "1", found["kind"] or "object"
    if kind not in KINDS:
        raise unknown_name("kind of concepts", kind, KINDS)
    try:
        return _file(found["file"]), float(weight), kind
    except ValueError:
        raise UsageError(f"{weight!r} is no weight", where=spec, hint="write FILE:0.5") from None


def _file(place: str) -> Path:
    if place in names():
        return LISTS / f"{place}.csv"
    if not Path(place).is_file():
        raise missing(place, hint=f"a file, or one of {', '.join(names())}")
    return Path(place)


def _read_rows(path: Path, kind: str) -> list[Concept]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("not a text file in utf-8", where=path) from error
    header = [word.strip().lower() for word in next((line for line in lines if line.strip()), "").split(",")]
    if "concept" in header:
        return _table(path, lines, header, kind)
    told = (tidy(line) for line in lines)
    return [
        Concept(name=name, source=path.stem, kind=kind, share=1, label=name) for name in told if name and name[0] != "#"
    ]


def _table(path: Path, lines: list[str], header: list[str], kind: str) -> list[Concept]:
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown:
        hint = f"it may have {', '.join(_COLUMNS)}"
        raise DataError(f"has an unknown column {unknown[0]!r}", where=path, hint=hint)
    reader, found = csv.reader(lines), []
    is_header = True
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if not is_header:
            if len(cells) != len(header):
                reason = f"line {reader.line_num} has {len(cells)} columns, the first line {len(header)}"
                raise DataError(reason, where=path)
            row = {name: tidy(cell) for name, cell in zip(header, cells, strict=True)}
            found.append(_row(path, reader.line_num, row, kind))
        is_header = False
    return found


def _row(path: Path, number: int, row: dict[str, str], kind: str) -> Concept:
    kind, weight = row.get("kind") or kind, row.get("weight") or "1"
    if not row["concept"]:
        raise DataError(f"line {number} has no concept", where=path)
    if kind not in KINDS:
        raise DataError(f"line {number}: {unknown_name('kind', kind, KINDS)}", where=path)
    try:
        share = float(weight)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise DataError(f"line {number}: {weight!r} is no weight", where=path)
    source, hypernym = row.get("source") or path.stem, row.get("hypernym") or ""
    label = row.get("class") or row["concept"]
    return Concept(name=row["concept"], source=source, kind=kind, share=share, hypernym=hypernym, label=label)


def _merged(rows: list[Concept]) -> tuple[list[Concept], list[str]]:
    """The concepts of a file, each once, and the names of those that stood there more than once."""
    first: dict[tuple[str, str], Concept] = {}
    doubled: dict[str, None] = {}
    for row in rows:
        key = row.name.casefold(), row.source
        if key in first:
            doubled[row.name] = None
            row = replace(first[key], share=first[key].share + row.share)
        first[key] = row
    return list(first.values()), list(doubled)
