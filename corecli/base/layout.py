"""The head of a safetensors file: the index of its tensors and the corecli header, with a hash of both, the seal.

Without the seal a flipped bit in a setting, a class name or the name of a tensor would go unnoticed. Files of other
tools and of corecli before the seal have none and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corecli.base.documents import check, loads
from corecli.base.errors import DataError
from corecli.base.schemas import SAFETENSORS

HEADER_KEY = "corecli"
SEAL_KEY = "corecli.sha256"
METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_HINT = "the file is damaged; make or copy it again"

Index = dict[str, Any]


def make_head(tensors: Mapping[str, Any], header: dict[str, Any]) -> bytes:
    """Return the bytes before the tensors: their size, and a sealed index padded to a multiple of 8 bytes.

    tensors: {name: {"dtype", "shape", "data_offsets"}} in the order of the file.
    """
    text = json.dumps(header, sort_keys=True)
    metadata = {HEADER_KEY: text, SEAL_KEY: _seal(text, tensors)}
    index = json.dumps({METADATA: metadata, **tensors}).encode()
    index += b" " * (-len(index) % 8)
    return len(index).to_bytes(8, "little") + index


def read_index(path: Path) -> Index:
    """Return the JSON index of a safetensors file.

    Errors: DataError if it is malformed, if the file is truncated, or if the index does not match its seal.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(min(size, MAX_HEADER_BYTES))
    try:
        if len(text) != size:
            raise ValueError("the header is cut off")
        index = check(loads(text), SAFETENSORS, where=path)
    except ValueError as error:
        raise DataError(f"not a readable safetensors file: {error}", where=path) from error
    end = max((entry["data_offsets"][1] for entry in tensors_of(index).values()), default=0)
    if Path(path).stat().st_size != 8 + size + end:
        raise DataError("truncated safetensors file", where=path, hint="make or copy it again")
    _check_seal(index, path)
    return index


def tensors_of(index: Index) -> Index:
    """Return the entries of an index without the metadata."""
    return {name: entry for name, entry in index.items() if name != METADATA}


def data_start(path: Path) -> int:
    """Return the offset of the first tensor in a safetensors file."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _check_seal(index: Index, path: Path) -> None:
    metadata = index.get(METADATA) or {}
    text, found = metadata.get(HEADER_KEY), metadata.get(SEAL_KEY)
    if text is None and found is None:
        return
    wanted = _seal(text or "", tensors_of(index))
    if found is None and wanted not in metadata.values():  # not sealed; else the name of the seal is damaged
        return
    if found != wanted:
        raise DataError("the header does not match its hash", where=path, hint=_HINT)


def _seal(text: str, tensors: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{text}\0{json.dumps(tensors, sort_keys=True)}".encode()).hexdigest()
