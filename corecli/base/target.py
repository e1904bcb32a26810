"""Is a named target already there, and is it the one this line would make?"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.checkpoint import read_header
from corecli.base.errors import CannotCreateError, DataError
from corecli.base.files import ZIP_ERRORS, read_json, sniff

MANIFEST = "manifest.json"
_MOST_TOLD = 8


def is_finished(out: Path, identity: dict[str, Any], *, force: bool) -> bool:
    """True when `out` is complete and was made with the same `identity`; False when it is still to be made.

    Errors: CannotCreateError when `out` exists and is something else, naming the fields that differ.
    """
    if out.is_dir() and not (out / MANIFEST).is_file():
        if not any(out.iterdir()):
            return False
        hint = "it has no manifest, so it is not replaced: remove it or choose another name"
        raise CannotCreateError("exists already", where=out, hint=hint)
    if force or not out.exists():
        return False
    made_with = _identity_of(out)
    if made_with is None:
        raise CannotCreateError("exists and was not made by this line", where=out, hint="--force replaces it")
    refuse_difference(out, made_with, identity)
    return True


def refuse_difference(where: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """CannotCreateError naming every field in which two identities differ; nothing when they are equal."""
    names = sorted(n for n in there.keys() | wanted.keys() if there.get(n) != wanted.get(n))
    if names:
        told = [f"{n}: {_short(there.get(n))} there, {_short(wanted.get(n))} now" for n in names[:_MOST_TOLD]]
        told += [f"{len(names) - _MOST_TOLD} more"] * (len(names) > _MOST_TOLD)
        shown = "; ".join(told)
        raise CannotCreateError(f"exists with another config: {shown}", where=where, hint="--force starts over")


def _identity_of(out: Path) -> dict[str, Any] | None:
    """What a target says it was made with; None where it says nothing, or is incomplete or damaged."""
    try:
        told = _manifest_of(out, sniff(out))
    except DataError:
        return None
    is_told = isinstance(told, dict) and told.get("complete", True)
    return told.get("identity") if is_told else None


def _manifest_of(out: Path, kind: str) -> Any:
    if kind == "directory":
        return read_json(out / MANIFEST)
    if kind == "json":
        return read_json(out)
    return _archive_manifest(out, kind) if kind in ("tar", "npz") else read_header(out)


def _archive_manifest(out: Path, kind: str) -> dict[str, Any]:
    """The manifest in a tar's first member or an npz's `corecli` array; {} in files of other tools."""
    try:
        if kind == "npz":
            with np.load(out, allow_pickle=False) as arrays:
                return json.loads(arrays["corecli"].tobytes()) if "corecli" in arrays else {}
        with tarfile.open(out) as archive:
            first = archive.next()
            text = archive.extractfile(first) if first and first.name == f".{MANIFEST}" else None
            return json.loads(text.read()) if text else {}
    except (OSError, tarfile.TarError, *ZIP_ERRORS):
        return {}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."
