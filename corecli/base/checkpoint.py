"""Save and load tensors with a JSON header, as safetensors or, for names in .pt or .pth, as a torch file.

The header says what the tensors are (`kind`) and how they were made (`config`, `parents`). It also has the hash of
their content (`fingerprint`), which every load verifies, because a flipped bit would otherwise load silently. A hash of
the header itself is in the head of a safetensors file (`base.layout`); in a torch file its member has a CRC-32.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from corecli import __version__
from corecli.base.archives import open_zip
from corecli.base.blocks import BlockHasher, hashes_name, is_hashes
from corecli.base.documents import MAX_DEPTH, check, loads
from corecli.base.errors import DataError
from corecli.base.files import atomic_write, missing, require_regular, sniff
from corecli.base.layout import HEADER_KEY as HEADER_KEY
from corecli.base.layout import MAX_HEADER_BYTES, METADATA, data_start, make_head, read_index, tensors_of
from corecli.base.schemas import HEADER, HEADERS
from corecli.base.sums import Watch

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
_WRITTEN_BY = {"encoder": "train-ssl", "features": "extract", "generator": "train-gen"}
_TORCH_TYPES = {  # names in an index and in torch
    **{f"{letter}{bits}": f"{name}{bits}" for letter, name in (("F", "float"), ("I", "int")) for bits in (16, 32, 64)},
    **{"U8": "uint8", "I8": "int8", "BOOL": "bool", "BF16": "bfloat16"},
}
_PIECE_BYTES = 1 << 22
_DAMAGED = "the file is damaged; make or copy it again"
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
    with atomic_write(path) as file:
        if path.suffix in (".pt", ".pth"):
            file.write(_torch_bytes(tensors, json.dumps(full, sort_keys=True)))
        else:
            for piece in _safetensors_bytes(tensors, full):
                file.write(piece)
    return full


def load(path: Path, *, kind: str | None = None) -> tuple[Tensors, Header]:
    """Read a file written by `save` and verify its hash; return (tensors on the CPU, header).

    Errors: MissingInputError; DataError if it is truncated, damaged, of a newer format or not of `kind`.
    """
    header = require_header(path, kind=kind)
    tensors = load_tensors(path)
    if fingerprint(tensors) != header["fingerprint"]:
        raise DataError("the content does not match its hash", where=path, hint=_DAMAGED)
    return tensors, header


def verify_file(path: Path, watch: Watch) -> None:
    """Check every hash in a file written by `save`, a packed set or latents. Only torch files are read as a whole.

    `watch` counts bytes and hashes. Errors: MissingInputError; DataError at the first difference.
    """
    header = require_header(path)
    if sniff(path) == "torch":
        found = fingerprint(load_tensors(path))
        watch(Path(path).stat().st_size)
    else:
        found = _streamed_fingerprint(path, watch)
    if found != header["fingerprint"]:
        raise DataError("the content does not match its hash", where=path, hint=_DAMAGED)
    watch.num_hashes += 1


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
    require_regular(path)
    found = sniff(path)
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
        return _parsed((read_index(path).get(METADATA) or {}).get(HEADER_KEY), path)
    if found == "directory":
        return None
    raise DataError("neither a safetensors nor a torch file", where=path, hint="or the file is truncated")


def find_header(path: Path) -> Header | None:
    """Return the corecli header of `path`; None if there is no such file, or a file of another kind.

    Errors: DataError for a damaged header.
    """
    return read_header(path) if sniff(path) in ("safetensors", "torch") else None


def fingerprint(tensors: Tensors) -> str:
    """Return a hash of names, types, shapes and bytes in the order of names; the layout of a file does not matter.

    Tensors with the hashes of other tensors do not count.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if not is_hashes(name)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(tensor_head(name, str(tensor.dtype), tensor.shape))
        digest.update(np.ascontiguousarray(tensor.reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()


def tensor_head(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """Return what a fingerprint hashes before the bytes of a tensor of a torch type, such as "torch.uint8"."""
    return json.dumps([name, dtype, list(shape)]).encode()


def _streamed_fingerprint(path: Path, watch: Watch) -> str:
    """Return the fingerprint of a safetensors file, with some MB in memory. Errors: DataError for a damaged block."""
    index, start, digest = read_index(path), data_start(path), hashlib.sha256()
    entries = tensors_of(index)
    with open(path, "rb") as file:
        for name in sorted(name for name in entries if not is_hashes(name)):
            dtype, shape, (begin, end) = (entries[name][field] for field in ("dtype", "shape", "data_offsets"))
            digest.update(tensor_head(name, f"torch.{_TORCH_TYPES.get(dtype, dtype)}", shape))
            blocks = BlockHasher(shape, (end - begin) // max(1, math.prod(shape)))
            for piece in _pieces(file, start + begin, end - begin):
                digest.update(piece)
                blocks.update(memoryview(piece))
                watch(len(piece))
            table = entries.get(hashes_name(name))
            if table is not None:
                begin, end = table["data_offsets"]
                if b"".join(_pieces(file, start + begin, end - begin)) != blocks.table().tobytes():
                    raise DataError(f"the hashes of {name} do not match it", where=path, hint=_DAMAGED)
                watch(end - begin)
                watch.num_hashes += len(blocks.table())
    return digest.hexdigest()


def _pieces(file: IO[bytes], start: int, num_bytes: int) -> Iterator[bytes]:
    file.seek(start)
    while num_bytes > 0 and (piece := file.read(min(num_bytes, _PIECE_BYTES))):
        num_bytes -= len(piece)
        yield piece


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
        if members and members[0].file_size > MAX_HEADER_BYTES:
            raise DataError("the header is too large", where=path)
        return archive.read(members[0]) if members else None


def _safetensors_bytes(tensors: Tensors, header: Header) -> Iterator[bytes | memoryview]:
    """Yield the head and the tensors, which the library lays out; the order of its own metadata would be random."""
    import safetensors.torch

    data = memoryview(safetensors.torch.save(tensors))
    start = 8 + int.from_bytes(data[:8], "little")
    yield make_head(loads(bytes(data[8:start])), header)
    yield data[start:]


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
