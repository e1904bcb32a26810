"""One safetensors file with `images` uint8 [N, 3, H, W] and the rows as columns; memory-mapped, never decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from corecli import __version__
from corecli.base.checkpoint import FORMAT_VERSION, HEADER_KEY, read_header, read_safetensors_index
from corecli.base.errors import DataError
from corecli.base.files import atomic_write, sniff
from corecli.data.columns import from_columns, to_columns
from corecli.data.formats.parts.writing import Chunk, begin_stream
from corecli.data.pixels import ArrayPixels, OnBad, PlainSet, digest
from corecli.data.rows import Rows, check_labels

SUFFIX, ACCEPTS = ".safetensors", "a .safetensors file"

_TYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F32": np.float32}
_NAMES = {np.dtype(dtype): name for name, dtype in _TYPES.items()}
_UNKNOWN = "0" * 64


def claims(spec: str) -> bool:
    """Whether a path is a safetensors file."""
    return sniff(Path(spec)) == "safetensors"


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open a packed set. Its pixels are memory-mapped, so their hash is not verified.

    A file of another tool needs only `images`. Errors: DataError if it is truncated, inconsistent or not a set.
    """
    path = Path(spec)
    try:
        header, index = read_header(path) or {}, read_safetensors_index(path)
        if header.get("kind", "images") != "images":
            raise DataError(f"is of kind {header['kind']!r}, not 'images'", where=path)
        images, columns = _map_images(path, index), _read_columns(path, index)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"malformed header: {error}", where=path, hint="the file is damaged") from error
    rows = from_columns(columns, num=len(images), where=path)
    class_names = tuple(header.get("class_names") or ())
    check_labels(rows, class_names, path)
    content = header.get("fingerprint") or digest(json.dumps(index, sort_keys=True))
    pixels = ArrayPixels(array=images, content=content, resize=image_size)
    return PlainSet(rows=rows, pixels=pixels, class_names=class_names)


def write(
    path: Path, rows: Rows, chunks: Iterable[Chunk], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write a packed set with one chunk of pixels in memory at a time; equal content gives equal bytes.

    The fingerprint in the header is that of `base.checkpoint`, which can verify and load the file as well.
    Errors: CannotCreateError, StorageError.
    """
    (height, width), arrays = begin_stream(chunks, rows, path)
    columns = dict(sorted(to_columns(rows).items(), key=lambda item: -item[1].itemsize))  # wide types first: aligned
    shape = (len(rows), 3, height, width)
    full = {
        **header,
        "kind": "images",
        "format": FORMAT_VERSION,
        "corecli": __version__,
        "class_names": list(class_names),
    }
    head = _head(columns, shape, {**full, "fingerprint": _UNKNOWN})
    with atomic_write(path) as file:
        file.write(head)
        for column in columns.values():
            file.write(np.ascontiguousarray(column).data)
        fingerprint = _write_images(file, arrays, columns, shape)
        file.seek(0)
        file.write(_head(columns, shape, {**full, "fingerprint": fingerprint}))  # of the same length


def made_with(path: Path) -> dict[str, Any]:
    """Return what the file records about how it was made; {} for a file of another tool. Errors: DataError."""
    return read_header(path) or {}


def _head(columns: Mapping[str, np.ndarray], images: tuple[int, ...], header: dict[str, Any]) -> bytes:
    index: dict[str, Any] = {"__metadata__": {HEADER_KEY: json.dumps(header, sort_keys=True)}}
    end = 0
    for name, column in columns.items():
        offsets = [end, end := end + column.nbytes]
        index[name] = {"dtype": _NAMES[column.dtype], "shape": list(column.shape), "data_offsets": offsets}
    offsets = [end, end + int(np.prod(images, dtype=np.int64))]
    index["images"] = {"dtype": "U8", "shape": list(images), "data_offsets": offsets}
    text = json.dumps(index).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_images(
    file: IO[bytes], arrays: Iterable[np.ndarray], columns: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> str:
    """Append the pixels; return the `base.checkpoint.fingerprint` of all tensors, which takes them in order of name."""
    hashed = hashlib.sha256()
    for name in sorted([*columns, "images"]):
        column = columns.get(name)
        dtype, size = ("uint8", shape) if column is None else (column.dtype, column.shape)
        hashed.update(json.dumps([name, f"torch.{dtype}", list(size)]).encode())
        for block in arrays if column is None else [column]:
            data = np.ascontiguousarray(block).reshape(-1).data
            hashed.update(data)
            if column is None:
                file.write(data)
    return hashed.hexdigest()


def _map_images(path: Path, index: dict[str, Any]) -> np.ndarray:
    entry = index.get("images")
    if entry is None:
        raise DataError("has no tensor 'images'", where=path, hint="a packed set has 'images' uint8 [N, 3, H, W]")
    shape = tuple(entry["shape"])
    if entry["dtype"] != "U8" or len(shape) != 4 or shape[1] != 3:
        raise DataError(f"images are {entry['dtype']} {list(shape)}, not uint8 [N, 3, H, W]", where=path)
    if not np.prod(shape):
        raise DataError("the image set is empty", where=path)
    return _array(path, entry)


def _read_columns(path: Path, index: dict[str, Any]) -> dict[str, np.ndarray]:
    names = [name for name in index if name not in ("__metadata__", "images") and index[name]["dtype"] in _TYPES]
    return {name: np.array(_array(path, index[name])) for name in names}


def _array(path: Path, entry: dict[str, Any]) -> np.ndarray:
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    begin, end = entry["data_offsets"]
    dtype, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
    if end - begin != int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize:
        raise DataError("the shape of a tensor does not fit its bytes", where=path, hint="the file is damaged")
    if begin == end:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + begin, shape=shape)
