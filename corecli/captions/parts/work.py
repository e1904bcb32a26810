"""Keep answers so that a run can be killed at any time: `OUT.d/` holds one line for every answer.

The captions are a function of the answers, so a rerun reads the answers and requests only the rest. At the end, OUT
appears by a rename, and a report replaces the answers; it identifies a finished target.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from corecli.base.claim import remove_leftovers
from corecli.base.documents import loads, read_json
from corecli.base.errors import CannotCreateError
from corecli.base.files import atomic_write, sha256_file, storage_errors, write_json
from corecli.base.schemas import IDENTITY, REPORT
from corecli.base.target import refuse_difference
from corecli.captions.parts.backend import Answer

_ABOUT, _ANSWERS, _REPORT = "run.json", "answers.jsonl", "report.json"
Key = tuple[int, int]


class Answers:
    """Answers by (index, attempt), each written to a file when it is added; without a folder, only kept in memory.

    Errors: CannotCreateError if another process is adding to the same file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._by_key: dict[Key, Answer] = {}
        self._file: int | None = None
        if folder is not None:
            path = folder / _ANSWERS
            self._where = path
            with storage_errors(path):
                self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CannotCreateError("another process is working in this folder", where=folder) from None
            self._read(path)

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    def __getitem__(self, key: Key) -> Answer:
        return self._by_key[key]

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def stay(self) -> bool:
        """Whether the answers outlive this process."""
        return self._file is not None

    def add(self, key: Key, answer: Answer) -> None:
        """Keep an answer, unless there already is one."""
        if key not in self._by_key:
            record = {"index": key[0], "attempt": key[1], "raw": answer.raw, "finish_reason": answer.finish_reason}
            self._write(json.dumps(record) + "\n")
            self._by_key[key] = answer

    def close(self) -> None:
        """Close the file, so that another process can use it."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is not None:
            with storage_errors(self._where):
                rest = line.encode()
                while rest:  # a nearly full disk takes only a part
                    rest = rest[os.write(self._file, rest) :]

    def _read(self, path: Path) -> None:
        """Read the complete lines. A line cut by a kill is ignored, so its answer is requested again."""
        text = path.read_bytes()
        if text and not text.endswith(b"\n"):
            self._write("\n")
        for line in text.splitlines():
            try:
                record = loads(line)
                key = int(record["index"]), int(record["attempt"])
                self._by_key.setdefault(key, Answer(raw=record["raw"], finish_reason=record["finish_reason"]))
            except (ValueError, KeyError, TypeError, OverflowError):
                continue


def finished(out: Path, identity: Mapping[str, Any], *, force: bool) -> dict[str, Any] | None:
    """Return the report of a finished target, whose answers are deleted, or None if it is still to be made.

    Errors: CannotCreateError if it is something else or was made with another identity.
    """
    folder = _folder_of(out)
    if force or not out.exists():
        return None
    if not (folder / _ABOUT).exists():
        raise CannotCreateError(
            "already exists and was not made by this command line", where=out, hint="--force replaces it"
        )
    refuse_difference(out, read_json(folder / _ABOUT, IDENTITY), dict(identity))
    if not (folder / _REPORT).exists():
        return None
    report = read_json(folder / _REPORT, REPORT)
    if report.pop("sha256", None) != sha256_file(out):
        raise CannotCreateError("was changed after it was made", where=out, hint="--force replaces it")
    (folder / _ANSWERS).unlink(missing_ok=True)  # a kill after the report was written leaves them
    return report


def open_folder(out: Path, identity: Mapping[str, Any], *, force: bool) -> Path:
    """Create or reopen `OUT.d/`. Errors: CannotCreateError if it holds work with another identity."""
    folder = _folder_of(out)
    about, answers = folder / _ABOUT, folder / _ANSWERS
    with storage_errors(folder):
        if folder.exists() and not about.exists() and any(folder.glob("[!.]*")):
            raise CannotCreateError("already exists", where=folder, hint="work in progress is kept in this folder")
        if force and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    if about.exists() and answers.exists() and answers.stat().st_size:
        refuse_difference(folder, read_json(about, IDENTITY), dict(identity))
    else:
        write_json(about, dict(identity))
    return folder


def publish(out: Path, lines: Iterable[bytes], report: Mapping[str, Any]) -> None:
    """Write the target, then the report, and delete the answers."""
    folder = _folder_of(out)
    (folder / _REPORT).unlink(missing_ok=True)
    with atomic_write(out) as file:
        file.writelines(lines)
    write_json(folder / _REPORT, {**report, "sha256": sha256_file(out)})
    (folder / _ANSWERS).unlink(missing_ok=True)


def remove_folder(out: Path) -> None:
    """Delete `OUT.d/`."""
    shutil.rmtree(_folder_of(out), ignore_errors=True)


def _folder_of(out: Path) -> Path:
    return out.with_name(out.name + ".d")
