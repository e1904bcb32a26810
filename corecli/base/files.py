"""Write files atomically, recognize their content, and hash them.

A target appears by a final rename, so that neither Make nor a reader ever sees half a file.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from corecli.base.claim import MANIFEST as MANIFEST
from corecli.base.claim import put_file, temporary_path
from corecli.base.errors import CannotCreateError, CorecliError, DataError, MissingInputError, StorageError

Kind = Literal["missing", "directory", "safetensors", "torch", "npz", "tar", "json", "image", "unknown"]

SEAL = "document_sha256"
_LAST_MEMBER = re.compile(rb',\s*"([^"]*)"\s*:\s*"([^"]*)"\s*}\s*$')
_MAX_SEAL_BYTES = 128
_IMAGE_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert an OSError raised while `path` is written to the CorecliError with the right exit code."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            hint = "free some space and run the same line again"
            raise StorageError((error.strerror or str(error)).lower(), where=path, hint=hint) from error
        if error.errno == errno.EEXIST and error.filename:
            raise CannotCreateError(f"{error.filename} is not a directory", where=path) from error
        raise CannotCreateError((error.strerror or str(error)).lower(), where=path) from error


def unreadable(error: OSError) -> CorecliError:
    """Return the CorecliError for an OSError of a reader: MissingInputError for a bad path, else StorageError."""
    reason = (error.strerror or str(error)).lower()
    is_path = error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
    return (MissingInputError if is_path else StorageError)(reason, where=error.filename)


def missing(path: object, what: str = "file", hint: str | None = None) -> MissingInputError:
    """Return the error for a path that does not exist; the default hint is the sibling with the nearest name."""
    path = Path(str(path))
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    if hint is None and near:
        hint = f"did you mean {path.with_name(near[0])}?"
    return MissingInputError(f"no such {what}", where=path, hint=hint)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing bytes; on success sync it and rename it to `path`.

    After an error an existing target is unchanged and no temporary file is left. A killed process leaves its own, which
    `claimed` and `remove_leftovers` remove: a search at every write would list the folder once for each of its files.
    Errors: StorageError if the disk is full, CannotCreateError if the path cannot be written, or if it is a target that
    another program has written meanwhile.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            put_file(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync a directory, so that renames in it survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write `value` as indented JSON, atomically; with `sealed`, an object with a hash of itself as its last member."""
    with atomic_write(path) as file:
        file.write(json_bytes(value, sealed=sealed))


def json_bytes(value: Any, *, sealed: bool = False) -> bytes:
    """Return the bytes that `write_json` writes."""
    text = json.dumps(value, indent=1, ensure_ascii=False).encode()
    return (seal(text) if sealed else text) + b"\n"


def seal(text: bytes) -> bytes:
    """Return the JSON text of an object that is not empty with one more member, the hash of the text before it."""
    before = text.rstrip().removesuffix(b"}").rstrip()
    return b'%s, "%s": "%s"}' % (before, SEAL.encode(), hashlib.sha256(before).hexdigest().encode())


def has_broken_seal(text: bytes) -> bool:
    """Whether a JSON text ends with a hash that differs from that of the text before it, or whose name is damaged."""
    found = _LAST_MEMBER.search(text, max(0, len(text) - _MAX_SEAL_BYTES))
    if found is None:
        return False
    matches = hashlib.sha256(memoryview(text)[: found.start()]).hexdigest().encode() == found[2]
    return matches != (found[1] == SEAL.encode())


def require_regular(path: Path) -> None:
    """Check that a path is a file, not a directory, a pipe or a device. Errors: MissingInputError, DataError."""
    if not Path(path).exists():
        raise missing(path)
    if not Path(path).is_file():
        raise DataError("not a regular file", where=path, hint="save the content in a file")


def sniff(path: Path) -> Kind:
    """Return what `path` is, judged by its first bytes and not by its name."""
    path = Path(path)
    if path.is_dir():
        return "directory"
    if not path.exists():
        return "missing"
    head = first_bytes(path, 512)
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    if head.startswith(_IMAGE_MAGIC) or head[8:12] == b"WEBP":
        return "image"
    if head[257:262] == b"ustar":
        return "tar"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    return "json" if head.lstrip()[:1] in (b"{", b"[") else "unknown"


def first_bytes(path: Path | str, num: int = 16) -> bytes:
    """Return the first `num` bytes of a file; b"" for a directory or a path that does not exist."""
    if not Path(path).is_file():
        return b""
    with open(path, "rb") as file:
        return file.read(num)


def _sniff_zip(path: Path) -> Kind:
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, struct.error, ValueError, EOFError, OverflowError, RuntimeError):
        return "unknown"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    return "npz" if any(name.endswith(".npy") for name in names) else "unknown"


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
