"""Captions from a server that speaks OpenAI's protocol, such as vLLM, which is asked for many at a time."""

from __future__ import annotations

import email.utils
import http.client
import json
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from corecli.base.errors import CorecliError, UnavailableError, UsageError
from corecli.base.rng import derive
from corecli.captions.parts.backend import Answer, Request, Settings, answer_of, body

NEEDS_MODEL = True
_FIRST_WAIT_SEC, _LONGEST_WAIT_SEC = 0.5, 60.0
_PASSING = (408, 409, 425, 429)  # and all from 500 on: another try may succeed
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}


def open_backend(settings: Settings) -> Server:
    """The server at `url`, such as http://localhost:8000/v1. Errors: UsageError for what is no such address."""
    return Server(settings)


class Server:
    """A backend that keeps `concurrency` requests under way."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._place = urlsplit(settings.url)
        if self._place.scheme not in ("http", "https") or not self._place.hostname:
            raise UsageError("no address of a server", where=settings.url, hint="write http://localhost:8000/v1")

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """As they come. Errors: UnavailableError when a request had no answer in all its tries, or is refused."""
        todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Request, Answer] | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        workers = [
            threading.Thread(target=self._work, args=(todo, done, stop), daemon=True)
            for _ in range(self._settings.concurrency)
        ]
        for worker in workers:
            worker.start()
        under_way = 0
        try:
            for request in requests:
                todo.put(request)
                under_way += 1
                if under_way >= 2 * len(workers):
                    yield _got(done)
                    under_way -= 1
            while under_way:
                yield _got(done)
                under_way -= 1
        finally:
            stop.set()
            for _ in workers:
                todo.put(None)

    def _work(self, todo: Any, done: Any, stop: threading.Event) -> None:
        """What a thread does: send requests over a connection of its own until there are no more."""
        place = self._place
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        assert place.hostname is not None
        connection = kind(place.hostname, place.port, timeout=self._settings.timeout_sec)
        try:
            while (request := todo.get()) is not None and not stop.is_set():
                try:
                    done.put((request, self._ask(connection, request, stop)))
                except BaseException as error:  # noqa: BLE001, told by the thread that waits for answers
                    done.put(error)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, request: Request, stop: threading.Event) -> Answer:
        """Try until there is an answer. Errors: UnavailableError."""
        failure = _Failure("was not asked")
        for number in range(self._settings.tries):
            try:
                return self._try(connection, request)
            except _Failure as error:
                failure = error
            except (OSError, http.client.HTTPException) as error:
                failure = _Failure(_reason(error))
            connection.close()
            if not failure.passes or stop.is_set():
                break
            if number + 1 < self._settings.tries:
                stop.wait(max(self._back_off(request, number), failure.wait_sec))
        tries = f" in {self._settings.tries} tries" if failure.passes else ""
        raise UnavailableError(f"no answer{tries}: {failure}", where=self._settings.url)

    def _try(self, connection: http.client.HTTPConnection, request: Request) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._settings.key:
            headers["Authorization"] = f"Bearer {self._settings.key}"
        path = self._place.path.rstrip("/") + _PATHS[self._settings.api]
        connection.request("POST", path, json.dumps(body(request, self._settings)).encode(), headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            passes = response.status in _PASSING or response.status >= 500
            wait = _wait_sec(response.headers.get("Retry-After"))
            raise _Failure(f"HTTP {response.status}{_message(content)}", passes=passes, wait_sec=wait)
        try:
            answer = answer_of(json.loads(content))
        except ValueError:
            answer = None
        if answer is None:
            raise _Failure("what came back holds no text")
        return answer

    def _back_off(self, request: Request, number: int) -> float:
        """Seconds before the next try: doubled with each, times a factor in [.5, 1.5) that spreads the requests."""
        spread = derive(self._settings.seed, "back-off", request.index, request.attempt, number) / 2**63
        return min(_FIRST_WAIT_SEC * 2**number, _LONGEST_WAIT_SEC) * (0.5 + spread)


class _Failure(Exception):
    """A try without an answer; it `passes` when another one may do better."""

    def __init__(self, reason: str, *, passes: bool = True, wait_sec: float = 0.0) -> None:
        super().__init__(reason)
        self.passes, self.wait_sec = passes, wait_sec


def _got(done: queue.SimpleQueue[tuple[Request, Answer] | BaseException]) -> tuple[Request, Answer]:
    got = done.get()
    if isinstance(got, BaseException):
        raise got if isinstance(got, CorecliError) else RuntimeError("a thread of the server backend failed") from got
    return got


def _wait_sec(told: str | None) -> float:
    """Retry-After: seconds, or a date; no longer than our own longest wait."""
    if not told:
        return 0.0
    try:
        wait = float(told)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except ValueError:
            wait = 0.0
    return min(max(wait, 0.0), _LONGEST_WAIT_SEC)


def _message(content: bytes) -> str:
    """What a server says about a refusal, in short."""
    text = content.decode(errors="replace")
    try:
        told = json.loads(text)
        told = told.get("error", told)
        text = told.get("message", text) if isinstance(told, dict) else str(told)
    except (ValueError, AttributeError):
        pass
    return f": {' '.join(str(text).split())[:160]}" if text.strip() else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
