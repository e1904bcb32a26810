"""Hashes of the files in a folder, in `SHA256SUMS`, which `sha256sum -c SHA256SUMS` checks as well."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from corecli.base.documents import read_bytes
from corecli.base.errors import DataError
from corecli.base.files import atomic_write

SUMS = "SHA256SUMS"
_BLOCK_BYTES = 1 << 20
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  ([^\n]+)", re.DOTALL)
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_HINT = f"copy or make it again, or remove {SUMS} if it was changed on purpose"


class Watch:
    """What a check has seen so far: call it with a number of bytes that were read."""

    def __init__(self) -> None:
        self.num_bytes = self.num_hashes = 0
        self.notes: list[str] = []

    def __call__(self, num_bytes: int) -> None:
        """Count bytes."""
        self.num_bytes += num_bytes


def write_sums(folder: Path, hashes: Mapping[str, str]) -> None:
    """Write the SHA-256 of files, in hexadecimal, by their paths relative to `folder`. Errors: StorageError."""
    with atomic_write(folder / SUMS) as file:
        file.writelines(_line(name, hashes[name]) for name in sorted(hashes))


def read_sums(folder: Path) -> dict[str, str] | None:
    """Return the hashes of files by their paths relative to `folder`; None without them. Errors: DataError."""
    path = folder / SUMS
    if not path.is_file():
        return None
    *lines, rest = read_bytes(path).split(b"\n")
    found: dict[str, str] = {}
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        parts = _LINE.fullmatch(line)
        name = os.fsdecode(_unescaped(parts[3]) if parts and parts[1] else parts[3] if parts else b"")
        if parts is None or rest or name in found or not _is_inside(name):
            raise DataError(f"line {number} is malformed", where=path, hint=_HINT)
        found[name] = parts[2].decode()
    return found


def check_sums(folder: Path, watch: Watch) -> dict[str, str] | None:
    """Check all files that `SHA256SUMS` lists and return their hashes by path; None without such a file.

    Errors: DataError naming the first file that is absent or differs.
    """
    hashes = read_sums(folder)
    for name, expected in (hashes or {}).items():
        check_sum(folder / name, expected, watch)
    return hashes


def check_sum(path: Path, expected: str, watch: Watch) -> None:
    """Check the SHA-256 of a file, in hexadecimal. Errors: DataError."""
    if not path.is_file():
        raise DataError(f"is listed in {SUMS} and does not exist", where=path, hint=_HINT)
    if hash_file(path, watch) != expected:
        raise DataError("the content does not match its hash", where=path, hint=_HINT)
    watch.num_hashes += 1


def hash_file(path: Path, watch: Watch, *, end: int | None = None) -> str:
    """Return the SHA-256, in hexadecimal, of a file up to the byte `end`."""
    found, left = hashlib.sha256(), path.stat().st_size if end is None else end
    with open(path, "rb") as file:
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            found.update(block)
            watch(len(block))
            left -= len(block)
    return found.hexdigest()


def _line(name: str, value: str) -> bytes:
    raw = os.fsencode(name)
    escaped = b"".join(_ESCAPES.get(raw[i : i + 1], raw[i : i + 1]) for i in range(len(raw)))
    return b"%s%s  %s\n" % (b"\\" if escaped != raw else b"", value.encode(), escaped)


def _unescaped(name: bytes) -> bytes:
    plain = {escape: character for character, escape in _ESCAPES.items()}
    return re.sub(rb"\\.", lambda found: plain.get(found[0], found[0]), name)


def _is_inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in name.split("/")
