"""The `.npz` of the ADM evaluator: `arr_0` uint8 [N, H, W, 3] and, if known, labels in `arr_1`.

Files written here have the other columns as further members, which other readers ignore.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from corecli.base.archives import open_zip, read_array, read_npy_header
from corecli.base.checkpoint import HEADER_KEY
from corecli.base.documents import check, loads
from corecli.base.errors import DataError
from corecli.base.files import atomic_write, sniff
from corecli.base.schemas import IMAGES
from corecli.base.sums import Watch
from corecli.data.columns import from_columns, to_columns
from corecli.data.formats.parts.writing import Chunk, begin_stream
from corecli.data.mapped import Crc32, MappedArray
from corecli.data.pixels import ArrayPixels, OnBad, PlainSet, digest
from corecli.data.rows import Rows, check_labels

SUFFIX, ACCEPTS = ".npz", "an .npz file"

_IMAGES, _LABELS = "arr_0", "arr_1"
_FIXED_DATE = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER_BYTES = 30
_PIECE_BYTES = 1 << 20


def claims(spec: str) -> bool:
    """Whether a path is an npz file."""
    return sniff(Path(spec)) == "npz"


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open an npz of images. `arr_0` is memory-mapped, or read into memory if it is compressed.

    Its CRC-32 is checked when the first image is read, that of the other members now.
    Errors: DataError if the file is damaged or holds something else, such as statistics.
    """
    path = Path(spec)
    with open_zip(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if _IMAGES not in members:
            raise DataError(
                f"has no array {_IMAGES}", where=path, hint=f"its arrays are {', '.join(sorted(members))[:80]}"
            )
        images = _read_images(path, archive, members[_IMAGES])
        columns = {name: read_array(archive, info) for name, info in members.items() if name != _IMAGES}
        header = _header(columns.pop(HEADER_KEY), path) if HEADER_KEY in columns else {}
    if _LABELS in columns:
        columns["labels"] = columns.pop(_LABELS)
    rows = from_columns(columns, num=len(images), where=path)
    class_names = tuple(header.get("class_names") or ())
    check_labels(rows, class_names, path)
    content = digest(*(f"{name} {info.CRC} {info.file_size}" for name, info in sorted(members.items())))
    pixels = ArrayPixels(array=images, content=content, layout="NHWC", resize=image_size)
    return PlainSet(rows=rows, pixels=pixels, class_names=class_names)


def write(
    path: Path, rows: Rows, chunks: Iterable[Chunk], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write an uncompressed npz with one chunk of pixels in memory at a time; equal content gives equal bytes.

    Errors: CannotCreateError, StorageError.
    """
    (height, width), arrays = begin_stream(chunks, rows, path)
    columns = to_columns(rows)
    labels = columns.pop("labels")
    if (labels >= 0).any():
        columns[_LABELS] = labels
    text = json.dumps({**header, "kind": "images", "class_names": list(class_names)}, sort_keys=True)
    columns[HEADER_KEY] = np.frombuffer(text.encode(), dtype=np.uint8)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, _IMAGES) as member:
            _write_npy_header(member, (len(rows), height, width, 3), np.dtype(np.uint8))
            for images in arrays:
                member.write(np.ascontiguousarray(images.transpose(0, 2, 3, 1)).data)
        for name, column in columns.items():
            with _member(archive, name) as member:
                _write_npy_header(member, column.shape, column.dtype)
                member.write(column.tobytes())


def made_with(path: Path) -> dict[str, Any]:
    """Return what the file records about how it was made; {} for a file of another tool. Errors: DataError."""
    with open_zip(path) as archive:
        name = f"{HEADER_KEY}.npy"
        return _header(read_array(archive, archive.getinfo(name)), path) if name in archive.namelist() else {}


def verify(path: Path, watch: Watch) -> None:
    """Check the rows and the CRC-32 of every member; `watch` counts bytes and hashes. Errors: DataError."""
    open_set(str(path), image_size=None, on_bad="fail")
    with open_zip(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                while piece := member.read(_PIECE_BYTES):
                    watch(len(piece))
            watch.num_hashes += 1


def _header(array: np.ndarray, path: Path) -> dict[str, Any]:
    return check(loads(array.tobytes()), IMAGES, where=path)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(zipfile.ZipInfo(f"{name}.npy", _FIXED_DATE), "w", force_zip64=True)


def _write_npy_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)


def _read_images(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray | MappedArray:
    with archive.open(info) as member:
        shape, fortran, dtype, head_bytes = read_npy_header(member)
        member.seek(0)
        head = member.read(head_bytes)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise DataError(f"{_IMAGES} is {dtype} {list(shape)}, not uint8 [N, H, W, 3]", where=path)
    if not np.prod(shape):
        raise DataError("the image set is empty", where=path)
    if fortran or info.compress_type != zipfile.ZIP_STORED:
        return read_array(archive, info)
    if info.file_size != head_bytes + int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"the size of {_IMAGES} differs from its header", where=path, hint="the file is damaged")
    start = _data_offset(path, info) + head_bytes
    hashes = Crc32(info.CRC, head, rows_per_block=shape[0])
    return MappedArray(path, name="images", dtype=np.uint8, shape=shape, offset=start, hashes=hashes)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the offset of a member's bytes; local headers may have extra fields that the directory does not."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        head = file.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    return info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
