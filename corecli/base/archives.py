"""Read zip and npz archives, whose members may claim to expand to far more than the file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from corecli.base.errors import DataError
from corecli.base.files import require_regular

# The exceptions that zipfile, zlib and numpy raise for damaged archives.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
)
_ENTRY = b"PK\x01\x02"  # begins every entry of the directory
_MAX_EXPANSION = 100  # bytes of members for each byte of the file
_ALWAYS_BYTES = 1 << 28  # members of this size in total are read from any file

NpyHeader = tuple[tuple[int, ...], bool, np.dtype, int]


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip or npz file for reading.

    Errors: MissingInputError; DataError if it is damaged, also while it is read, or expands to too many bytes.
    """
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bomb(archive, path)
            _check_directory(archive)
            yield archive
    except (OSError, *ZIP_ERRORS) as error:
        kind = "npz" if Path(path).suffix == ".npz" else "zip"
        reason = str(error) or type(error).__name__
        raise DataError(f"the {kind} file is damaged: {reason}", where=path, hint="make or copy it again") from error


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read a member in .npy format. Errors: ValueError if its size differs from its header; those of `ZIP_ERRORS`."""
    with archive.open(info) as member:
        shape, _, dtype, head_bytes = read_npy_header(member)
        if dtype.hasobject:
            raise ValueError("an array of objects")
        num_bytes = dtype.itemsize
        for side in shape:
            num_bytes *= side
        if info.file_size != head_bytes + num_bytes:
            raise ValueError(f"the size of {info.filename} differs from its header")
        member.seek(0)
        return np.lib.format.read_array(member, allow_pickle=False)


def read_npy_header(file: IO[bytes]) -> NpyHeader:
    """Return (shape, whether in Fortran order, dtype, bytes of the header). Errors: ValueError for negative sizes."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {list(shape)}")
    return shape, fortran, dtype, file.tell()


def _check_directory(archive: zipfile.ZipFile) -> None:
    """Check that no member has disappeared from the directory, whose bytes have no CRC of their own.

    Errors: ValueError for an entry within another one; BadZipFile for a name that differs from that beside the content.
    """
    for info in archive.infolist():
        if _ENTRY in info.comment or _ENTRY in info.extra:
            raise ValueError(f"the directory is damaged at {info.filename}")
        archive.open(info).close()


def _refuse_bomb(archive: zipfile.ZipFile, path: Path) -> None:
    """Check what the members claim to expand to; zipfile never reads more. Errors: DataError."""
    size, expanded = Path(path).stat().st_size, sum(info.file_size for info in archive.infolist())
    if expanded > max(_ALWAYS_BYTES, _MAX_EXPANSION * size):
        reason = f"{size} bytes expand to {expanded}, more than {_MAX_EXPANSION} times as many"
        raise DataError(reason, where=path, hint="do not trust this file; an uncompressed copy of it is read")
