"""Writes requests for an offline run to a file (for `vllm run-batch`) and reads the answers with --ingest.

Both files hold JSON lines in the form of OpenAI's batches. The custom_id of a request holds the name of the run, the
number of the caption and the number of the attempt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corecli.base.documents import loads, read_bytes
from corecli.base.errors import DataError
from corecli.base.files import atomic_write
from corecli.captions.parts.backend import Answer, Request, RequestsWritten, Settings
from corecli.captions.parts.openai import answer_of, body

NEEDS_MODEL = True
USES = ("extensions", "write_requests", "ingest")
NEEDS = {"out": "it keeps the answers beside that file between runs"}
_ID = re.compile(r"(?P<job>[0-9a-f]{12})-(?P<index>\d+)-(?P<attempt>\d+)")
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def open_backend(settings: Settings) -> Batch:
    """Return the backend, with the answers of --ingest. Errors: MissingInputError; DataError naming the line."""
    return Batch(settings)


class Batch:
    """A backend that answers from files and writes the other requests to a file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[int, int], Answer] = {}
        for path in settings.ingest:
            self._read(path)

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield the answers that were read.

        Errors: RequestsWritten if some requests have none and are now in --write-requests; DataError without that file.
        """
        unanswered: list[Request] = []
        for request in requests:
            answer = self._known.get((request.index, request.attempt))
            if answer is None:
                unanswered.append(request)
            else:
                yield request, answer
        if not unanswered:
            return
        path = self._settings.write_requests
        if path is None:
            hint = "write their requests with --write-requests FILE; the answers so far are kept"
            raise DataError(f"{len(unanswered)} captions have no answer yet", hint=hint)
        with atomic_write(path) as file:
            for request in unanswered:
                file.write(json.dumps(self._line(request), ensure_ascii=False).encode() + b"\n")
        raise RequestsWritten(path, len(unanswered))

    def _line(self, request: Request) -> dict[str, Any]:
        return {
            "custom_id": f"{self._settings.job}-{request.index:09d}-{request.attempt}",
            "method": "POST",
            "url": _PATHS[self._settings.api],
            "body": body(request, self._settings),
        }

    def _read(self, path: Path) -> None:
        """Keep the answers in a file; requests that failed stay unanswered."""
        for number, line in enumerate(read_bytes(path).splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = loads(line)
                name = _ID.fullmatch(record["custom_id"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"line {number} is not an answer of a batch", where=path) from error
            if name is None or name["job"] != self._settings.job:
                hint = "use the same options as when the requests were written"
                raise DataError(f"line {number} belongs to another run: {record['custom_id']!r}", where=path, hint=hint)
            response = record.get("response") or {}
            answer = answer_of(response.get("body", response)) if isinstance(response, dict) else None
            if answer is not None and not record.get("error"):
                self._known.setdefault((int(name["index"]), int(name["attempt"])), answer)
