"""Captions from files: requests written for an offline run (`vllm run-batch -i FILE -o ANSWERS`), answers read back.

Both are JSON lines in the form of OpenAI's batches. A request is known by its custom_id: the plan, the caption's
number and the attempt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corecli.base.errors import DataError
from corecli.base.files import atomic_write, missing
from corecli.captions.parts.backend import Answer, Request, Settings, answer_of, body

NEEDS_MODEL = True
_ID = re.compile(r"(?P<plan>[0-9a-f]{12})-(?P<index>\d+)-(?P<attempt>\d+)")
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def open_backend(settings: Settings) -> Batch:
    """The files of --ingest, and of --write-requests. Errors: MissingInputError, DataError with the line."""
    return Batch(settings)


class Batch:
    """A backend that answers from what it has read and writes down the rest."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[int, int], Answer] = {}
        for path in settings.ingest:
            self._read(path)

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """Those that were read. Errors: BatchWritten when some were not, and are now in --write-requests; DataError
        where none was named."""
        lacking: list[Request] = []
        for request in requests:
            answer = self._known.get((request.index, request.attempt))
            if answer is None:
                lacking.append(request)
            else:
                yield request, answer
        if not lacking:
            return
        path = self._settings.write_requests
        if path is None:
            hint = "--write-requests FILE asks for them; what was ingested is kept"
            raise DataError(f"{len(lacking)} captions have no answer yet", hint=hint)
        with atomic_write(path) as file:
            for request in lacking:
                file.write(json.dumps(self._line(request), ensure_ascii=False).encode() + b"\n")
        raise BatchWritten(path, len(lacking))

    def _line(self, request: Request) -> dict[str, Any]:
        return {
            "custom_id": f"{self._settings.plan}-{request.index:09d}-{request.attempt}",
            "method": "POST",
            "url": _PATHS[self._settings.api],
            "body": body(request, self._settings),
        }

    def _read(self, path: Path) -> None:
        """Keep the answers of a file; requests that failed there stay unanswered."""
        if not path.is_file():
            raise missing(path)
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                told = json.loads(line)
                name = _ID.fullmatch(told["custom_id"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"line {number} is no answer of a batch", where=path) from error
            if name is None or name["plan"] != self._settings.plan:
                hint = "ingest with the options that the requests were written with"
                raise DataError(f"line {number} answers another plan: {told['custom_id']!r}", where=path, hint=hint)
            response = told.get("response") or {}
            answer = answer_of(response.get("body", response)) if isinstance(response, dict) else None
            if answer is not None and not told.get("error"):
                self._known.setdefault((int(name["index"]), int(name["attempt"])), answer)


class BatchWritten(Exception):
    """Not an error: the requests that are now to be answered elsewhere are in `path`."""

    def __init__(self, path: Path, num: int) -> None:
        super().__init__(f"{num} requests are in {path}")
        self.path, self.num = path, num
