"""What the writers of all formats share: streams of images, checks of keys, and atomic directories."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from corecli.base.claim import put_directory, remove_leftovers, temporary_path
from corecli.base.errors import CannotCreateError, DataError
from corecli.base.files import MANIFEST, storage_errors, sync_directory
from corecli.data.rows import Rows

if TYPE_CHECKING:
    import torch

Chunk: TypeAlias = "torch.Tensor | np.ndarray"


def as_array(chunk: Chunk) -> np.ndarray:
    """Return images, uint8 [n, 3, H, W], as an array."""
    return chunk if isinstance(chunk, np.ndarray) else chunk.numpy(force=True)


def begin_stream(chunks: Iterable[Chunk], rows: Rows, where: object) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
    """Return ((H, W), arrays uint8 [n, 3, H, W]) for a stream of images; the first chunk gives the size.

    Only one chunk is in memory at a time. Errors: DataError for an empty set; AssertionError, while iterating, when the
    stream does not fit `rows`.
    """
    if not len(rows):
        raise DataError("no images to write", where=where)
    stream = iter(chunks)
    first = as_array(next(stream))
    height, width = first.shape[2:]
    return (height, width), _checked(first, stream, len(rows))


def check_keys(rows: Rows, where: object) -> None:
    """Check that every key can be the path of a file inside the set. Errors: DataError."""
    for key in rows.keys:
        parts = key.split("/")
        if any(not part or part.startswith(".") for part in parts):
            hint = "keys are relative paths without empty, hidden or '..' parts"
            raise DataError(f"key {key!r} cannot be a file name", where=where, hint=hint)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Create a hidden directory beside `path` to write into; on success it replaces `path`, on failure it is removed.

    Errors: CannotCreateError if `path` is anything but an earlier set with a manifest; StorageError.
    """
    temporary = temporary_path(path)
    with storage_errors(path):
        _refuse_others(path)
        remove_leftovers(path.parent, [path.name])
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _refuse_others(path)  # another program may have filled it meanwhile
            put_directory(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_directory(path.parent)


def _refuse_others(path: Path) -> None:
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        hint = "such a path is not replaced; remove it or choose another name"
        raise CannotCreateError("already exists and has no manifest", where=path, hint=hint)


def _checked(first: np.ndarray, stream: Iterator[Chunk], num: int) -> Iterator[np.ndarray]:
    size, written, chunk = first.shape[2:], 0, first
    del first
    while True:
        assert (chunk.dtype, chunk.shape[1:]) == (np.uint8, (3, *size)), f"a chunk of {chunk.dtype} {chunk.shape}"
        written += len(chunk)
        yield np.ascontiguousarray(chunk)
        del chunk
        following = next(stream, None)
        if following is None:
            break
        chunk = as_array(following)
        del following
    assert written == num, f"{written} images for {num} rows"
