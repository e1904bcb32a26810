"""Read lists of concepts and backgrounds, from the user's files or from ours by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corecli.base.documents import read_json, read_rows, read_text
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.files import missing, sha256_file

LISTS = Path(__file__).parents[1] / "lists"
KINDS = ("object", "place", "texture")
_COLUMNS = ("concept", "source", "kind", "weight", "hypernym", "class")
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept, with its share of the captions, in 0..1. Captions of places and textures have no second word.

    label: the class name of its images; the concept itself, unless the list has another.
    """

    name: str
    source: str
    kind: str
    share: float
    label: str
    hypernym: str = ""


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """All concepts of a run, with shares that add up to 1; their files; and notes on merged duplicates."""

    concepts: tuple[Concept, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def names() -> tuple[str, ...]:
    """Return the names of our own lists."""
    return tuple(sorted(path.stem for path in LISTS.glob("*.csv") if path.stem != "examples"))


def read_concepts(specs: Sequence[str]) -> Concepts:
    """Read the concepts of `FILE[:WEIGHT[:KIND]]` items.

    A file is text with one concept per line, or CSV with the column `concept` and others. WEIGHT is the relative share
    of the file; the column `weight` is the relative share of a concept within its file. Duplicates in a file are
    merged and their weights added. Errors: MissingInputError; UsageError; DataError naming the line.
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
            reason = "the file has no concepts" if not rows else "no concept has a weight above 0"
            raise DataError(reason, where=path, hint="write one concept per line, or CSV with the column concept")
        found += [replace(row, share=row.share * weight / total / whole) for row in rows]
        if merged:
            shown = ", ".join(merged[:_MOST_NAMED]) + (", ..." if len(merged) > _MOST_NAMED else "")
            notes.append(f"{path}: merged {len(merged)} concepts that are listed more than once: {shown}")
    return Concepts(concepts=tuple(found), files=tuple(path for path, _, _ in parsed), notes=tuple(notes))


def read_backgrounds(place: str) -> Mapping[str, Sequence[str]] | Sequence[str]:
    """Read backgrounds by concept, hypernym or source from a JSON dictionary, or one list for every concept.

    Errors: MissingInputError, DataError.
    """
    path = background_file(place)
    if path.suffix != ".json":
        return [concept.name for concept in read_concepts([str(path)]).concepts]
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError("not a dictionary of backgrounds", where=path, hint='write {"tiger": ["forest", "zoo"], ...}')
    for name, words in content.items():
        if not isinstance(words, list) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise DataError(f"the backgrounds of {name!r} are not a list of words", where=path)
    return {tidy(name): list(dict.fromkeys(map(tidy, words))) for name, words in content.items()}


def background_file(place: str) -> Path:
    """Return the file of a dictionary or list of backgrounds; `everyday` names our own dictionary."""
    return LISTS / "backgrounds.json" if place == "everyday" else _file(place)


def fingerprint(paths: Sequence[Path]) -> str:
    """Return the fingerprints of files, in order."""
    return " ".join(sha256_file(path)[:16] for path in paths)


def tidy(text: str) -> str:
    """Return a name as captions write it: without underscores and repeated spaces."""
    return " ".join(text.replace("_", " ").split())


def _parse(spec: str) -> tuple[Path, float, str]:
    """Return (file, weight, kind of concepts whose line gives none)."""
    found = re.fullmatch(r"(?P<file>.*?)(:(?P<weight>[\d.eE+-]+))?(:(?P<kind>[a-z]+))?", spec, re.DOTALL)
    assert found is not None
    weight, kind = found["weight"] or "1", found["kind"] or "object"
    if kind not in KINDS:
        raise unknown_name("kind of concepts", kind, KINDS)
    try:
        return _file(found["file"]), float(weight), kind
    except ValueError:
        raise UsageError(f"{weight!r} is not a weight", where=spec, hint="write FILE:0.5") from None


def _file(place: str) -> Path:
    if place in names():
        return LISTS / f"{place}.csv"
    if not Path(place).is_file():
        raise missing(place, hint=f"give a file, or one of {', '.join(names())}")
    return Path(place)


def _read_rows(path: Path, kind: str) -> list[Concept]:
    lines = read_text(path).splitlines()
    header = [word.strip().lower() for word in next((line for line in lines if line.strip()), "").split(",")]
    if "concept" in header:
        return _table(path, lines, header, kind)
    listed = (tidy(line) for line in lines)
    return [
        Concept(name=name, source=path.stem, kind=kind, share=1, label=name)
        for name in listed
        if name and name[0] != "#"
    ]


def _table(path: Path, lines: list[str], header: list[str], kind: str) -> list[Concept]:
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown:
        hint = f"the columns are {', '.join(_COLUMNS)}"
        raise DataError(f"unknown column {unknown[0]!r}", where=path, hint=hint)
    found, is_header = [], True
    for number, cells in read_rows(lines, where=path):
        if not any(cell.strip() for cell in cells):
            continue
        if not is_header:
            if len(cells) != len(header):
                reason = f"line {number} has {len(cells)} columns, the first line {len(header)}"
                raise DataError(reason, where=path)
            row = {name: tidy(cell) for name, cell in zip(header, cells, strict=True)}
            found.append(_row(path, number, row, kind))
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
        raise DataError(f"line {number}: {weight!r} is not a weight", where=path)
    source, hypernym = row.get("source") or path.stem, row.get("hypernym") or ""
    label = row.get("class") or row["concept"]
    return Concept(name=row["concept"], source=source, kind=kind, share=share, hypernym=hypernym, label=label)


def _merged(rows: list[Concept]) -> tuple[list[Concept], list[str]]:
    """Return the concepts of a file without duplicates, and the names of the duplicates."""
    first: dict[tuple[str, str], Concept] = {}
    doubled: dict[str, None] = {}
    for row in rows:
        key = row.name.casefold(), row.source
        if key in first:
            doubled[row.name] = None
            row = replace(first[key], share=first[key].share + row.share)
        first[key] = row
    return list(first.values()), list(doubled)
