"""Save and load tensors with a JSON header, as safetensors or, for names in .pt or .pth, as a torch file.

The header says what the tensors are (`kind`) and how they were made (`config`, `parents`). It also has the hash of
their content (`fingerprint`), which every load verifies, because a flipped bit would otherwise load silently.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli import __version__
from corecli.base.archives import open_zip
from corecli.base.documents import MAX_DEPTH, check, loads
from corecli.base.errors import DataError
from corecli.base.files import atomic_write, missing, sniff
from corecli.base.schemas import HEADER, HEADERS, SAFETENSORS

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
HEADER_KEY = "corecli"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_WRITTEN_BY = {"encoder": "train-ssl", "features": "extract", "generator": "train-gen"}
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)

Tensors = dict[str, "torch.Tensor"]
Header = dict[str, Any]


def save(path: Path, tensors: Tensors, *, kind: str, **header: Any) -> Header:
    """Write `tensors` atomically with a header of `kind` and the given JSON fields; return the whole header.

    The bytes depend on the arguments alone (there are no times), so equal runs give equal files.
    Errors: StorageError, CannotCreateError.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    full = {
        "kind": kind,
        "format": FORMAT_VERSION,
        "corecli": __version__,
        **header,
        "fingerprint": fingerprint(tensors),
    }
    text = json.dumps(full, sort_keys=True)
    with atomic_write(path) as file:
        if path.suffix in (".pt", ".pth"):
            file.write(_torch_bytes(tensors, text))
        else:
            import safetensors.torch

            file.write(safetensors.torch.save(tensors, metadata={HEADER_KEY: text}))
    return full


def load(path: Path, *, kind: str | None = None) -> tuple[Tensors, Header]:
    """Read a file written by `save` and verify its hash; return (tensors on the CPU, header).

    Errors: MissingInputError; DataError if it is truncated, damaged, of a newer format or not of `kind`.
    """
    header = require_header(path, kind=kind)
    tensors = load_tensors(path)
    if fingerprint(tensors) != header["fingerprint"]:
        raise DataError(
            "the content does not match its hash", where=path, hint="the file is damaged; make or copy it again"
        )
    return tensors, header


def require_header(path: Path, *, kind: str | None = None) -> Header:
    """Return the header of a file written by `save`, without torch and without verifying the hash.

    Errors: MissingInputError; DataError if there is no header, or one of another kind or of a newer format.
    """
    header = read_header(path)
    hint = f"use a file written by corecli {_WRITTEN_BY[kind]}" if kind in _WRITTEN_BY else None
    if header is None:
        raise DataError("has no corecli header", where=path, hint=hint)
    if kind is not None and header["kind"] != kind:
        raise DataError(f"is of kind {header['kind']!r}, not {kind!r}", where=path, hint=hint)
    if header["format"] > FORMAT_VERSION:
        hint = "upgrade corecli to read it"
        raise DataError(f"format {header['format']} is newer than {FORMAT_VERSION}", where=path, hint=hint)
    return check(header, HEADERS.get(header["kind"], {}), where=path)


def load_tensors(path: Path) -> Tensors:
    """Read the plain tensors of any safetensors or torch file; code in it never runs.

    Nested dictionaries in files of other tools (`{"state_dict": {...}}`) are flattened, their keys joined by dots.
    Errors: MissingInputError, DataError.
    """
    found = sniff(path)
    if found == "missing":
        raise missing(path)
    if found == "safetensors":
        return _load_safetensors(path)
    may_be_old = found == "unknown" and Path(path).suffix in (".pt", ".pth", ".ckpt", ".tar")  # before torch 1.6
    if found == "torch" or may_be_old:
        return _load_torch(path)
    raise DataError("neither a safetensors nor a torch file", where=path, hint="or the file is truncated")


def read_header(path: Path) -> Header | None:
    """Return the corecli header of a file, without torch; None if it has none. Errors: MissingInputError, DataError."""
    found = sniff(path)
    if found == "missing":
        raise missing(path)
    if found == "torch":
        return _parsed(_torch_header(path), path)
    if found == "safetensors":
        return _parsed((read_safetensors_index(path).get("__metadata__") or {}).get(HEADER_KEY), path)
    if found == "directory":
        return None
    raise DataError("neither a safetensors nor a torch file", where=path, hint="or the file is truncated")


def find_header(path: Path) -> Header | None:
    """Return the corecli header of `path`; None if there is no such file, or a file of another kind.

    Errors: DataError for a damaged header.
    """
    return read_header(path) if sniff(path) in ("safetensors", "torch") else None


def read_safetensors_index(path: Path) -> dict[str, Any]:
    """Return the JSON index of a safetensors file. Errors: DataError if it is malformed or the file is truncated."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(min(size, _MAX_HEADER_BYTES))
    try:
        if len(text) != size:
            raise ValueError("the header is cut off")
        index = check(loads(text), SAFETENSORS, where=path)
    except ValueError as error:
        raise DataError(f"not a readable safetensors file: {error}", where=path) from error
    end = max((entry["data_offsets"][1] for name, entry in index.items() if name != "__metadata__"), default=0)
    if Path(path).stat().st_size != 8 + size + end:
        raise DataError("truncated safetensors file", where=path, hint="make or copy it again")
    return index


def fingerprint(tensors: Tensors) -> str:
    """Return a hash of names, types, shapes and bytes in the order of names; the layout of a file does not matter."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(np.ascontiguousarray(tensor.reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()


def _parsed(text: str | bytes | None, path: Path) -> Header | None:
    """Parse the JSON of a header. Errors: DataError if a required field is missing or has another type."""
    if not text:
        return None
    try:
        header = loads(text)
    except ValueError as error:
        raise DataError(f"damaged corecli header: {error}", where=path, hint="make or copy the file again") from error
    return check(header, HEADER, where=path)


def _torch_header(path: Path) -> bytes | None:
    with open_zip(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(f"/{HEADER_KEY}.json")]
        if members and members[0].file_size > _MAX_HEADER_BYTES:
            raise DataError("the header is too large", where=path)
        return archive.read(members[0]) if members else None


def _torch_bytes(tensors: Tensors, header: str) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:  # torch.load ignores the extra member; we read it without torch
        archive.writestr(zipfile.ZipInfo(f"archive/{HEADER_KEY}.json", _FIXED_DATE), header)
    return buffer.getvalue()


def _load_safetensors(path: Path) -> Tensors:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(f"not a readable safetensors file: {error}", where=path) from error


def _load_torch(path: Path) -> Tensors:
    import argparse

    import torch

    if sniff(path) == "torch":
        with open_zip(path):  # refuses members that expand too far
            pass
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch's advice; the error below says it in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason, hint = _why_unsafe(error)
        raise DataError(f"not a safe, readable torch file: {reason}", where=path, hint=hint) from error
    return _flatten(content)


def _why_unsafe(error: Exception) -> tuple[str, str]:
    """Return (reason, hint); they replace torch's advice, which is to trust the file."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        return (
            f"it contains code or objects{what}",
            "only plain tensors are read, never code; save its state_dict alone",
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return reason[:160], "make or copy it again"


def _flatten(value: Any, prefix: str = "", depth: int = 0) -> Tensors:
    import torch

    if isinstance(value, torch.Tensor):
        return {prefix.rstrip("."): value}
    if not isinstance(value, dict) or depth > MAX_DEPTH:  # a dictionary that holds itself, too
        return {}
    found: Tensors = {}
    for name, item in value.items():
        found.update(_flatten(item, f"{prefix}{name}.", depth + 1))
    return found
