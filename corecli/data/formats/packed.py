"""One safetensors file with `images` uint8 [N, 3, H, W] and the rows as columns; memory-mapped, never decoded.

Images of different sizes are files in one tensor, `encoded` uint8 [bytes], and decoded when they are read: file i is
`encoded[encoded.offsets[i] : encoded.offsets[i + 1]]`, and its image is heights[i] x widths[i] px.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
from corecli.data.beside import Beside
from corecli.data.columns import from_columns, to_columns
from corecli.data.encoded import EncodedImage
from corecli.data.formats.parts.packed_files import ENCODED, holds_files, open_files, pieces, spool
from corecli.data.formats.parts.writing import Chunk, begin_stream
from corecli.data.groups import group_index
from corecli.data.mapped import TYPES, MappedArray, map_tensor, open_column
from corecli.data.pixels import ArrayPixels, EncodedPixels, OnBad, PlainSet, digest, identity_of, without_bad
from corecli.data.rows import LARGE, Rows, check_labels, check_rows, count_groups
from corecli.data.strings import digest_strings

SUFFIX, ACCEPTS = ".safetensors", "a .safetensors file"

_NAMES = {np.dtype(dtype): name for name, dtype in TYPES.items()}
_UNKNOWN = "0" * 64


def claims(spec: str) -> bool:
    """Whether a path is a safetensors file."""
    return sniff(Path(spec)) == "safetensors"


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open a packed set. Pixels are memory-mapped; each block of them is checked when it is first read.

    Opening takes the same time and memory for any number of images: what needs all rows, such as the fingerprint of the
    set and the number of groups, is in the header, and columns of more than 4 MiB are memory-mapped and checked like
    pixels. A file of another tool needs only `images`; its columns are checked.
    Errors: DataError if the file is truncated, inconsistent or not a set.
    """
    path = Path(spec)
    try:
        header, index, start = read_header(path) or {}, read_index(path), data_start(path)
        if header.get("kind", "images") != "images":
            raise DataError(f"is of kind {header['kind']!r}, not 'images'", where=path)
        columns = _read_columns(path, index, start)
        content = header.get("fingerprint") or digest(json.dumps(index, sort_keys=True))
        pixels = _open_pixels(path, index, columns, start=start, content=content, image_size=image_size)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"malformed header: {error}", where=path, hint="the file is damaged") from error
    recorded = header.get("rows") or {}
    is_ours = "fingerprint" in header
    rows = from_columns(columns, num=len(pixels), where=path, is_ours=is_ours, num_groups=recorded.get("num_groups"))
    rows = replace(rows, beside=Beside(path, str(header.get("fingerprint")))) if is_ours else rows
    class_names = tuple(header.get("class_names") or ())
    if not (is_ours and len(rows) > LARGE):
        check_labels(rows, class_names, path)
    known = recorded.get("fingerprint") if image_size is None else None
    found = PlainSet(rows=rows, pixels=pixels, class_names=class_names, known_fingerprint=known)
    return without_bad(found, pixels, on_bad, path) if isinstance(pixels, EncodedPixels) else found


def write(
    path: Path, rows: Rows, chunks: Iterable[Chunk], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write a packed set with one chunk of pixels in memory at a time; equal content gives equal bytes.

    The fingerprint in the header is that of `base.checkpoint`, which can verify and load the file as well.
    Errors: CannotCreateError, StorageError.
    """
    (height, width), arrays = begin_stream(chunks, rows, path)
    body = _Body(name="images", shape=(len(rows), 3, height, width), arrays=arrays)
    with atomic_write(path) as file:
        fingerprint = _write(file, rows, body, to_columns(rows), class_names=class_names, header=header)
    if len(rows) > LARGE:
        group_index(replace(rows, beside=Beside(path, fingerprint)))  # stored for the first run that needs it


def write_encoded(
    path: Path, rows: Rows, images: Iterable[EncodedImage], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write image files, which may differ in size, into a packed set; a temporary file holds them meanwhile.

    Errors: CannotCreateError, StorageError.
    """
    if not len(rows):
        raise DataError("no images to write", where=path)
    with atomic_write(path) as target, tempfile.TemporaryFile(dir=path.parent) as file:
        columns = {**to_columns(rows), **spool(images, len(rows), file)}
        body = _Body(name=ENCODED, shape=(file.tell(),), arrays=pieces(file))
        _write(target, rows, body, columns, class_names=class_names, header=header)


@dataclass(frozen=True, kw_only=True)
class _Body:
    """The last tensor of a file, uint8, which is streamed."""

    name: str
    shape: tuple[int, ...]
    arrays: Iterable[np.ndarray]


def _write(
    file: IO[bytes],
    rows: Rows,
    body: _Body,
    columns: Mapping[str, np.ndarray],
    *,
    class_names: tuple[str, ...],
    header: dict[str, Any],
) -> str:
    """Write the content of a packed set; return its fingerprint."""
    columns = dict(sorted(columns.items(), key=lambda item: -item[1].itemsize))  # wide types first: aligned
    full = {
        **header,
        "kind": "images",
        "format": FORMAT_VERSION,
        "corecli": __version__,
        "class_names": list(class_names),
    }
    index, facts = _index(columns, body), {"num_groups": count_groups(rows), "fingerprint": _UNKNOWN}
    file.write(make_head(index, {**full, "rows": facts, "fingerprint": _UNKNOWN}))
    for array in [*columns.values(), *map(hashes_of, columns.values())]:
        file.write(bytes_of(array))
    place = file.tell()
    file.write(bytes(num_blocks(body.shape, 1) * HASH_BYTES))
    fingerprint, hashes = _write_body(file, body, columns)
    facts["fingerprint"] = digest_strings(identity_of(fingerprint, None), rows.keys)
    file.seek(place)
    file.write(hashes.tobytes())
    file.seek(0)
    file.write(make_head(index, {**full, "rows": facts, "fingerprint": fingerprint}))  # of the same length
    return fingerprint


def made_with(path: Path) -> dict[str, Any]:
    """Return what the file records about how it was made; {} for a file of another tool. Errors: DataError."""
    return read_header(path) or {}


def verify(path: Path, watch: Watch) -> None:
    """Check the header, the rows and all hashes; of a file of another tool, what can be read of it.

    `watch` counts bytes and hashes. Errors: DataError.
    """
    found, header = open_set(str(path), image_size=None, on_bad="fail"), read_header(path)
    if header is not None:
        verify_file(path, watch)
        check_rows(found.rows, path)
        check_labels(found.rows, found.class_names, path)
        actual = {
            "num_groups": count_groups(replace(found.rows, num_groups=None)),
            "fingerprint": found.computed_fingerprint,
        }
        if any(actual[name] != value for name, value in (header.get("rows") or {}).items()):
            raise DataError("the rows are not those that the header describes", where=path, hint="make the set again")
    else:
        watch(path.stat().st_size)


def _index(columns: Mapping[str, np.ndarray], body: _Body) -> Index:
    """Return the entries of all tensors, with the hashes of each; the images are last."""
    tables = {hashes_name(name): (num_blocks(a.shape, a.itemsize), HASH_BYTES) for name, a in columns.items()}
    tables[hashes_name(body.name)] = (num_blocks(body.shape, 1), HASH_BYTES)
    found: Index = {}
    end = 0
    arrays = [(name, column.dtype, column.shape) for name, column in columns.items()]
    bytes_ = [(name, np.dtype(np.uint8), shape) for name, shape in {**tables, body.name: body.shape}.items()]
    for name, dtype, shape in [*arrays, *bytes_]:
        offsets = [end, end := end + math.prod(shape) * dtype.itemsize]
        found[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
    return found


def _write_body(file: IO[bytes], body: _Body, columns: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Append the images; return the `base.checkpoint.fingerprint`, which takes tensors in order of name, and hashes."""
    hashed, blocks = hashlib.sha256(), BlockHasher(body.shape, 1)
    for name in sorted([*columns, body.name]):
        column = columns.get(name)
        dtype, size = ("uint8", body.shape) if column is None else (column.dtype, column.shape)
        hashed.update(tensor_head(name, f"torch.{dtype}", size))
        for array in body.arrays if column is None else [column]:
            data = bytes_of(array)
            hashed.update(data)
            if column is None:
                blocks.update(data)
                file.write(data)
    return hashed.hexdigest(), blocks.table()


def _open_pixels(
    path: Path,
    index: Index,
    columns: Mapping[str, np.ndarray],
    *,
    start: int,
    content: str,
    image_size: int | None,
) -> ArrayPixels | EncodedPixels:
    if holds_files(index):
        files = open_files(path, index, columns, start=start, content=content)
        return EncodedPixels(store=files, positions=np.arange(len(files.heights)), resize=image_size)
    return ArrayPixels(array=_map_images(path, index, start), content=content, resize=image_size)


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
    names = [name for name in known if name not in ("images", ENCODED) and not is_hashes(name)]
    return {name: open_column(path, index, name, start=start) for name in names}
