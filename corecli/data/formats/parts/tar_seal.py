"""The seal of a tar: its last member, `.sha256`, has the SHA-256 of all bytes before it.

Readers of WebDataset ignore it, like all hidden members.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import IO, Any

from corecli.base.errors import DataError
from corecli.base.sums import Watch, hash_file

_NAME = ".sha256"


class Hashed:
    """A file that is written from its start, and the hash of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the file, such as its position."""
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        """Write and hash bytes."""
        self._digest.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()


def last_member(value: str) -> tuple[tarfile.TarInfo, IO[bytes]]:
    """Return the last member of a tar whose other members have the hash `value`, in hexadecimal."""
    info = tarfile.TarInfo(_NAME)
    info.size = len(value)
    return info, io.BytesIO(value.encode())


def check_seal(path: Path, watch: Watch) -> bool:
    """Whether a tar has a seal, which is checked. Errors: DataError if a byte before or after it differs."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
        start, tail = file.tell(), file.read()
    blocks = range(0, len(tail), tarfile.BLOCKSIZE)
    begin = next((at for at in blocks if tail[at : at + len(_NAME) + 1] == _NAME.encode() + b"\0"), None)
    if begin is None:
        return False
    if _tail(hash_file(path, watch, end=start + begin), start + begin) != tail[begin:]:
        hint = "the file is damaged, or members were added; make or copy it again"
        raise DataError("the content does not match its hash", where=path, hint=hint)
    watch.num_hashes += 1
    return True


def _tail(value: str, start: int) -> bytes:
    """Return the bytes of a tar from its seal at `start` to its end, as tarfile writes them."""
    info, _ = last_member(value)
    member = info.tobuf(tarfile.PAX_FORMAT) + value.encode().ljust(tarfile.BLOCKSIZE, b"\0")
    end = start + len(member) + 2 * tarfile.BLOCKSIZE
    return member + bytes(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - start - len(member))
