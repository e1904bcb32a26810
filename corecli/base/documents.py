"""Read JSON and TOML within limits, and check the shape of what was read against a schema.

A schema is data: a type (`int`, `float`, `str`, `bool`, `dict`, `None`), a `Rule`, a list `[schema]` for lists of any
length, a tuple of alternatives, or a dictionary of members. A member named `name?` is optional, `*` stands for all
other members, and members that a schema does not name may have any value. `float` accepts integers and is finite.
"""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from corecli.base.errors import CorecliError, DataError
from corecli.base.files import SEAL, has_broken_seal, missing, require_regular

MAX_BYTES = 1 << 30  # of a file; the manifest of 10 million images with captions as groups has 600 MB
MAX_DEPTH = 100
_MAX_INTEGER = 1 << 64
_MAX_CHARS = 40  # of a value shown in an error
_NAMES = {str: "a string", int: "an integer", float: "a finite number", bool: "true or false", dict: "an object"}

Schema = Any


class Rule(NamedTuple):
    """A value of a type that a condition holds for, and its description in an error."""

    type: type
    holds: Callable[[Any], bool]
    wanted: str


class _Mismatch(NamedTuple):
    path: str
    wanted: str
    found: Any


def one_of(*names: str) -> Rule:
    """Return the rule for a string among `names`."""
    return Rule(str, names.__contains__, f"one of {', '.join(names)}")


def loads(text: str | bytes, *, any_integer: bool = False) -> Any:
    """Parse JSON and check the hash at its end, if there is one.

    Errors: ValueError, also for deep nesting and, unless `any_integer`, for integers above 64 bits.
    """
    if isinstance(text, bytes) and has_broken_seal(text):
        raise ValueError(f"the content does not match its hash; if you changed it yourself, remove {SEAL!r}")
    value = _parsed(json.loads, text, any_integer=any_integer)
    if isinstance(value, dict):
        value.pop(SEAL, None)
    return value


def loads_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Errors: ValueError, also for deep nesting and for huge integers."""
    return _parsed(tomllib.loads, text)


def read_json(path: Path, schema: Schema = None, *, max_bytes: int = MAX_BYTES, any_integer: bool = False) -> Any:
    """Read a JSON file and check it against a schema, if one is given.

    any_integer: allow integers above 64 bits, as in tokenizers without a maximum length (10^30). Errors:
    MissingInputError, DataError.
    """
    try:
        value = loads(read_bytes(path, max_bytes=max_bytes), any_integer=any_integer)
    except ValueError as error:
        raise DataError(f"not a readable JSON file: {error}", where=path) from error
    return value if schema is None else check(value, schema, where=path)


def read_bytes(path: Path | str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most `max_bytes`. Errors: MissingInputError, DataError."""
    path = Path(path)
    require_regular(path)
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"has {path.stat().st_size} bytes, more than the limit of {max_bytes}", where=path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error}", where=path) from error


def read_text(path: Path | str, *, max_bytes: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8, with or without a byte order mark. Errors: MissingInputError, DataError."""
    try:
        return read_bytes(path, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("not a text file in UTF-8", where=path) from error


def read_rows(lines: Iterable[str], *, where: object) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of the rows of a CSV. Errors: DataError for a cell of more than 128 KiB."""
    reader = csv.reader(lines)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} is not CSV: {error}", where=where) from error


def check(value: Any, schema: Schema, *, where: object, path: str = "", error: type[CorecliError] = DataError) -> Any:
    """Return `value` if it has the shape of `schema`. Errors: `error` naming the path of the first mismatch."""
    found = _mismatch(value, schema, path)
    if found is not None:
        place = f"{found.path}: " if found.path else ""
        raise error(f"{place}expected {found.wanted}, found {_short(found.found)}", where=where)
    return value


def _parsed(parse: Callable[[Any], Any], text: str | bytes, *, any_integer: bool = False) -> Any:
    try:
        value = parse(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    _refuse_extremes(value, any_integer=any_integer)
    if _has_half_pairs(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text has half of a surrogate pair") from None
    return value


def _has_half_pairs(text: str | bytes) -> bool:
    """Whether a text may escape a code point from U+D800 to U+DFFF, which no file in UTF-8 can hold."""
    return "\\ud" in text.lower() if isinstance(text, str) else b"\\ud" in text.lower()


def _refuse_extremes(value: Any, *, any_integer: bool) -> None:
    """Visit all containers, level by level. Errors: ValueError."""
    level: list[Any] = [value] if isinstance(value, dict | list) else [[value]]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            for item in container.values() if isinstance(container, dict) else container:
                if isinstance(item, dict | list):
                    below.append(item)
                elif type(item) is int and not any_integer and not -_MAX_INTEGER < item < _MAX_INTEGER:
                    raise ValueError("an integer has more than 64 bits")
        if not below:
            return
        level = below
    raise ValueError(f"nested more than {MAX_DEPTH} levels deep")


def _mismatch(value: Any, schema: Schema, path: str) -> _Mismatch | None:
    if isinstance(schema, tuple) and not isinstance(schema, Rule):
        return _in_alternatives(value, schema, path)
    if isinstance(schema, list):
        return _in_list(value, schema[0], path)
    if isinstance(schema, dict):
        return _in_object(value, schema, path)
    is_right = _is_a(value, schema.type) and schema.holds(value) if isinstance(schema, Rule) else _is_a(value, schema)
    return None if is_right else _Mismatch(path, _described(schema), value)


def _in_alternatives(value: Any, schemas: tuple[Schema, ...], path: str) -> _Mismatch | None:
    """The mismatch inside the last alternative that has the right kind, else the one with all of them."""
    found = [_mismatch(value, schema, path) for schema in schemas]
    if None in found:
        return None
    inside = next((one for one in reversed(found) if one is not None and one.path != path), None)
    return inside or _Mismatch(path, " or ".join(map(_described, schemas)), value)


def _in_list(value: Any, schema: Schema, path: str) -> _Mismatch | None:
    if not isinstance(value, list):
        return _Mismatch(path, "a list", value)
    if schema in (int, str) and set(map(type, value)) <= {schema}:  # long columns of rows
        return None
    return _first(_mismatch(item, schema, f"{path}[{number}]") for number, item in enumerate(value))


def _in_object(value: Any, members: dict[str, Schema], path: str) -> _Mismatch | None:
    if not isinstance(value, dict):
        return _Mismatch(path, "an object", value)
    schemas = {name.removesuffix("?"): schema for name, schema in members.items() if name != "*"}
    absent = next((name for name in members if name != "*" and not name.endswith("?") and name not in value), None)
    if absent is not None:
        return _Mismatch(path, f"a member {absent!r}", list(value))
    known = {name: schemas.get(name, members.get("*", object)) for name in value}
    return _first(_mismatch(value[name], schema, _member(path, name)) for name, schema in known.items())


def _first(found: Iterable[_Mismatch | None]) -> _Mismatch | None:
    return next((one for one in found if one is not None), None)


def _member(path: str, name: str) -> str:
    shown = name if name.isidentifier() else _short(name)
    return f"{path}.{shown}" if path else shown


def _is_a(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return kind is object or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))


def _described(schema: Schema) -> str:
    if isinstance(schema, Rule):
        return schema.wanted
    if isinstance(schema, list | dict):
        return "a list" if isinstance(schema, list) else "an object"
    return "null" if schema is None else _NAMES.get(schema, "a value")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "..."
