"""Sends concurrent requests to a server with OpenAI's API, such as vLLM."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from corecli.base.errors import CorecliError, UnavailableError, UsageError
from corecli.base.rng import derive
from corecli.captions.parts.backend import Answer, Request, Settings
from corecli.captions.parts.openai import answer_of, body

NEEDS_MODEL = True
USES = ("extensions", "url", "key_env", "concurrency", "timeout_sec", "tries")
_FIRST_WAIT_SEC, _LONGEST_WAIT_SEC = 0.5, 60.0
_TEMPORARY = (408, 409, 425, 429)  # as are all from 500 on: another try may succeed
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}


def check(settings: Settings) -> None:
    """Check the URL, such as http://localhost:8000/v1. Errors: UsageError."""
    place = urlsplit(settings.url)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise UsageError("not the URL of a server", where=settings.url, hint="write http://localhost:8000/v1")


def open_backend(settings: Settings) -> Server:
    """Return the server at `url`. Errors: as `check`."""
    check(settings)
    return Server(settings)


class Server:
    """A backend that keeps `concurrency` requests in flight."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._place = urlsplit(settings.url)
        self._key = os.environ.get(settings.key_env)

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield answers as they arrive. Errors: UnavailableError if a request fails in every try or is refused."""
        todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Request, Answer] | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(todo, done, stop), daemon=True)
            for _ in range(self._settings.concurrency)
        ]
        for worker in workers:
            worker.start()
        in_flight = 0
        try:
            for request in requests:
                todo.put(request)
                in_flight += 1
                if in_flight >= 2 * len(workers):
                    yield _got(done)
                    in_flight -= 1
            while in_flight:
                yield _got(done)
                in_flight -= 1
        finally:
            stop.set()
            for _ in workers:
                todo.put(None)

    def _work(self, todo: Any, done: Any, stop: threading.Event) -> None:
        """Send requests over one connection until there are no more; every thread runs this."""
        place = self._place
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        assert place.hostname is not None
        connection = kind(place.hostname, place.port, timeout=self._settings.timeout_sec)
        try:
            while (request := todo.get()) is not None and not stop.is_set():
                try:
                    done.put((request, self._ask(connection, request, stop)))
                except BaseException as error:  # noqa: BLE001, raised by the thread that waits for answers
                    done.put(error)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, request: Request, stop: threading.Event) -> Answer:
        """Try until there is an answer. Errors: UnavailableError."""
        failure = _Failure("no try was made")
        for number in range(self._settings.tries):
            try:
                return self._try(connection, request)
            except _Failure as error:
                failure = error
            except (OSError, http.client.HTTPException) as error:
                failure = _Failure(_reason(error))
            connection.close()
            if not failure.is_temporary or stop.is_set():
                break
            if number + 1 < self._settings.tries:
                stop.wait(max(self._back_off(request, number), failure.wait_sec))
        tries = f" in {self._settings.tries} tries" if failure.is_temporary else ""
        raise UnavailableError(f"no answer{tries}: {failure}", where=self._settings.url)

    def _try(self, connection: http.client.HTTPConnection, request: Request) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        path = self._place.path.rstrip("/") + _PATHS[self._settings.api]
        connection.request("POST", path, json.dumps(body(request, self._settings)).encode(), headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            is_temporary = response.status in _TEMPORARY or response.status >= 500
            wait = _wait_sec(response.headers.get("Retry-After"))
            raise _Failure(f"HTTP {response.status}{_message(content)}", is_temporary=is_temporary, wait_sec=wait)
        try:
            answer = answer_of(json.loads(content))
        except ValueError:
            answer = None
        if answer is None:
            raise _Failure("the response holds no text")
        return answer

    def _back_off(self, request: Request, number: int) -> float:
        """Return the seconds before the next try: doubled with every try, times a random factor in [.5, 1.5)."""
        spread = derive(self._settings.seed, "back-off", request.index, request.attempt, number) / 2**63
        return min(_FIRST_WAIT_SEC * 2**number, _LONGEST_WAIT_SEC) * (0.5 + spread)


class _Failure(Exception):
    """A try without an answer; if it `is_temporary`, another try may succeed."""

    def __init__(self, reason: str, *, is_temporary: bool = True, wait_sec: float = 0.0) -> None:
        super().__init__(reason)
        self.is_temporary, self.wait_sec = is_temporary, wait_sec


def _got(done: queue.SimpleQueue[tuple[Request, Answer] | BaseException]) -> tuple[Request, Answer]:
    got = done.get()
    if isinstance(got, BaseException):
        raise got if isinstance(got, CorecliError) else RuntimeError("a thread of the server backend failed") from got
    return got


def _wait_sec(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header, which holds seconds or a date; at most our own longest wait."""
    if not retry_after:
        return 0.0
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            wait = 0.0
    return min(max(wait, 0.0), _LONGEST_WAIT_SEC)


def _message(response: bytes) -> str:
    """Return the first words of a server's error message."""
    text = response.decode(errors="replace")
    try:
        content = json.loads(text)
        error = content.get("error", content)
        text = error.get("message", text) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    return f": {' '.join(str(text).split())[:160]}" if text.strip() else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
