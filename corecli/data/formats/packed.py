"""One safetensors file with `images` uint8 [N, 3, H, W] and the rows as columns; memory-mapped, never decoded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from corecli import __version__
from corecli.base.blocks import HASH_BYTES, BlockHasher, bytes_of, hashes_name, hashes_of, is_hashes, num_blocks
from corecli.base.checkpoint import FORMAT_VERSION, read_header, tensor_head, verify_file
from corecli.base.errors import DataError
from corecli.base.files import atomic_write, sniff
from corecli.base.layout import Index, data_start, make_head, read_index, tensors_of
from corecli.base.sums import Watch
from corecli.data.columns import from_columns, to_columns
from corecli.data.formats.parts.writing import Chunk, begin_stream
from corecli.data.mapped import TYPES, MappedArray, map_tensor
from corecli.data.pixels import ArrayPixels, OnBad, PlainSet, digest
from corecli.data.rows import Rows, check_labels

SUFFIX, ACCEPTS = ".safetensors", "a .safetensors file"

_NAMES = {np.dtype(dtype): name for name, dtype in TYPES.items()}
_UNKNOWN = "0" * 64


def claims(spec: str) -> bool:
    """Whether a path is a safetensors file."""
    return sniff(Path(spec)) == "safetensors"


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open a packed set. Its pixels are memory-mapped; each block of them is checked when it is first read.

    A file of another tool needs only `images`. Errors: DataError if it is truncated, inconsistent or not a set.
    """
    path = Path(spec)
    try:
        header, index, start = read_header(path) or {}, read_index(path), data_start(path)
        if header.get("kind", "images") != "images":
            raise DataError(f"is of kind {header['kind']!r}, not 'images'", where=path)
        images, columns = _map_images(path, index, start), _read_columns(path, index, start)
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
    index = _index(columns, shape)
    with atomic_write(path) as file:
        file.write(make_head(index, {**full, "fingerprint": _UNKNOWN}))
        for array in [*columns.values(), *map(hashes_of, columns.values())]:
            file.write(bytes_of(array))
        place = file.tell()
        file.write(bytes(num_blocks(shape, 1) * HASH_BYTES))
        fingerprint, hashes = _write_images(file, arrays, columns, shape)
        file.seek(place)
        file.write(hashes.tobytes())
        file.seek(0)
        file.write(make_head(index, {**full, "fingerprint": fingerprint}))  # of the same length


def made_with(path: Path) -> dict[str, Any]:
    """Return what the file records about how it was made; {} for a file of another tool. Errors: DataError."""
    return read_header(path) or {}


def verify(path: Path, watch: Watch) -> None:
    """Check the header, the rows and all hashes; of a file of another tool, what can be read of it.

    `watch` counts bytes and hashes. Errors: DataError.
    """
    open_set(str(path), image_size=None, on_bad="fail")
    if read_header(path) is not None:
        verify_file(path, watch)
    else:
        watch(path.stat().st_size)


def _index(columns: Mapping[str, np.ndarray], images: tuple[int, ...]) -> Index:
    """Return the entries of all tensors, with the hashes of each; the images, whose number is known, are last."""
    tables = {hashes_name(name): (num_blocks(a.shape, a.itemsize), HASH_BYTES) for name, a in columns.items()}
    tables[hashes_name("images")] = (num_blocks(images, 1), HASH_BYTES)
    found: Index = {}
    end = 0
    arrays = [(name, column.dtype, column.shape) for name, column in columns.items()]
    bytes_ = [(name, np.dtype(np.uint8), shape) for name, shape in {**tables, "images": images}.items()]
    for name, dtype, shape in [*arrays, *bytes_]:
        offsets = [end, end := end + math.prod(shape) * dtype.itemsize]
        found[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
    return found


def _write_images(
    file: IO[bytes], arrays: Iterable[np.ndarray], columns: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[str, np.ndarray]:
    """Append the pixels; return the `base.checkpoint.fingerprint`, which takes tensors in order of name, and hashes."""
    hashed, blocks = hashlib.sha256(), BlockHasher(shape, 1)
    for name in sorted([*columns, "images"]):
        column = columns.get(name)
        dtype, size = ("uint8", shape) if column is None else (column.dtype, column.shape)
        hashed.update(tensor_head(name, f"torch.{dtype}", size))
        for array in arrays if column is None else [column]:
            data = bytes_of(array)
            hashed.update(data)
            if column is None:
                blocks.update(data)
                file.write(data)
    return hashed.hexdigest(), blocks.table()


def _map_images(path: Path, index: Index, start: int) -> MappedArray:
    entry = index.get("images")
    if entry is None:
        raise DataError("has no tensor 'images'", where=path, hint="a packed set has 'images' uint8 [N, 3, H, W]")
    shape = tuple(entry["shape"])
    if entry["dtype"] != "U8" or len(shape) != 4 or shape[1] != 3:
        raise DataError(f"images are {entry['dtype']} {list(shape)}, not uint8 [N, 3, H, W]", where=path)
    if not math.prod(shape):
        raise DataError("the image set is empty", where=path)
    return map_tensor(path, index, "images", start=start)


def _read_columns(path: Path, index: Index, start: int) -> dict[str, np.ndarray]:
    known = {name: entry for name, entry in tensors_of(index).items() if entry["dtype"] in TYPES and entry["shape"]}
    names = [name for name in known if name != "images" and not is_hashes(name)]
    return {name: map_tensor(path, index, name, start=start).read() for name in names}
