"""Check whether the target of a command line exists, and whether it is the one that the line would make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from corecli.base.checkpoint import read_header
from corecli.base.documents import read_json
from corecli.base.errors import CannotCreateError, DataError
from corecli.base.files import MANIFEST, sniff

Record = dict[str, Any]
_MAX_FIELDS = 8  # shown in an error
_MAX_CHARS = 40  # of a value shown in an error


def read_record(out: Path) -> Record | None:
    """Return the record in a JSON file or a file header of how it was made; None if it records nothing."""
    return read_json(out) if sniff(out) == "json" else read_header(out)


def is_finished(
    out: Path, identity: Record, *, force: bool, read_record: Callable[[Path], Record | None] = read_record
) -> bool:
    """Whether `out` is complete and was made with the same `identity`; False if it is still to be made.

    `read_record` reads the record of a file; a directory has its manifest.
    Errors: CannotCreateError if `out` exists and is something else, naming the fields that differ.
    """
    if out.is_dir() and not (out / MANIFEST).is_file():
        if not any(out.iterdir()):
            return False
        hint = "such a directory is not replaced; remove it or choose another name"
        raise CannotCreateError("already exists and has no manifest", where=out, hint=hint)
    if force or not out.exists():
        return False
    made_with = _identity_of(out, read_record)
    if made_with is None:
        raise CannotCreateError(
            "already exists and was not made by this command line", where=out, hint="--force replaces it"
        )
    refuse_difference(out, made_with, identity)
    return True


def refuse_difference(where: Path, found: Record, wanted: Record) -> None:
    """Raise CannotCreateError naming every field in which two identities differ; do nothing if they are equal."""
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if names:
        shown = [f"{n}: {_short(found.get(n))} there, {_short(wanted.get(n))} now" for n in names[:_MAX_FIELDS]]
        shown += [f"{len(names) - _MAX_FIELDS} more"] * (len(names) > _MAX_FIELDS)
        raise CannotCreateError(
            f"exists with another config: {'; '.join(shown)}", where=where, hint="--force starts over"
        )


def _identity_of(out: Path, read_record: Callable[[Path], Record | None]) -> Record | None:
    """Return the identity that a target records; None if it records none, or is incomplete or damaged."""
    try:
        record = read_json(out / MANIFEST) if out.is_dir() else read_record(out)
    except DataError:
        return None
    return record.get("identity") if isinstance(record, dict) and record.get("complete", True) else None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_CHARS else text[:12] + "..."
