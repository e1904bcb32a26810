"""Sends concurrent requests to a server with OpenAI's API, such as vLLM.

A request has a total time, an answer a largest size. Redirects are refused, and neither the key nor a password in the
URL is ever printed.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from corecli.base.documents import Schema, loads
from corecli.base.documents import check as check_shape
from corecli.base.errors import DataError, UnavailableError, UsageError
from corecli.base.rng import derive
from corecli.base.schemas import SERVER_ERROR
from corecli.captions.parts.backend import Answer, Request, Settings
from corecli.captions.parts.openai import answer_of, body

NEEDS_MODEL = True
USES = ("extensions", "url", "key_env", "concurrency", "timeout_sec", "tries")
_FIRST_WAIT_SEC, _LONGEST_WAIT_SEC = 0.5, 60.0
_TEMPORARY = (408, 409, 425, 429)  # as are all from 500 on: another try may succeed
_LARGEST_BYTES = 16 << 20  # of a response; an answer has a few kilobytes
_LONGEST_REASON = 160  # characters
_PATHS = {"completions": "/completions", "chat": "/chat/completions"}


def check(settings: Settings) -> None:
    """Check the URL, such as http://localhost:8000/v1, and the key. Errors: UsageError."""
    try:
        place = urlsplit(settings.url)
        http.client.HTTPConnection(place.hostname or "", place.port)
        is_server = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
        is_server = is_server and re.fullmatch("[!-~]*", place.path) is not None
    except (ValueError, http.client.HTTPException):  # a port above 65535, half an IPv6 address, control characters
        is_server = False
    if not is_server:
        raise UsageError("not the URL of a server", where=shown(settings.url), hint="write http://localhost:8000/v1")
    if re.fullmatch("[!-~]*", _key(settings)) is None:
        raise UsageError(f"the key in {settings.key_env} has characters that no header can hold")


def shown(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    return re.sub(r"^([^/]*//)?[^/?#]*@", r"\1", url).partition("?")[0].partition("#")[0]


def _key(settings: Settings) -> str:
    return os.environ.get(settings.key_env, "").strip()


def open_backend(settings: Settings) -> Server:
    """Return the server at `url`. Errors: as `check`."""
    check(settings)
    return Server(settings)


class Server:
    """A backend that keeps `concurrency` requests in flight."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._place = urlsplit(settings.url)
        self._key = _key(settings)
        self._secrets = [word for word in (self._key, self._place.password, self._place.username) if word]

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
                    done.put((request, self._answer(connection, request, stop)))
                except BaseException as error:  # noqa: BLE001, raised by the thread that waits for answers
                    done.put(error)
        finally:
            connection.close()

    def _answer(self, connection: http.client.HTTPConnection, request: Request, stop: threading.Event) -> Answer:
        """Try until there is an answer. Errors: UnavailableError."""
        failure = _Failure("no try was made")
        for number in range(self._settings.tries):
            try:
                return self._try(connection, request)
            except _Failure as error:
                failure = error
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                failure = _Failure(self._plain(_reason(error)))
            connection.close()
            if not failure.is_temporary or stop.is_set():
                break
            if number + 1 < self._settings.tries:
                stop.wait(max(self._back_off(request, number), failure.wait_sec))
        tries = f" in {self._settings.tries} tries" if failure.is_temporary else ""
        raise UnavailableError(f"no answer{tries}: {failure}", where=shown(self._settings.url))

    def _try(self, connection: http.client.HTTPConnection, request: Request) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        path = self._place.path.rstrip("/") + _PATHS[self._settings.api]
        with _Deadline(connection, self._settings.timeout_sec) as deadline:
            connection.request("POST", path, json.dumps(body(request, self._settings)).encode(), headers)
            deadline.watch(connection.sock)
            response = connection.getresponse()
            content = response.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise _Failure(f"the response is larger than {_LARGEST_BYTES >> 20} MB", is_temporary=False)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        if 300 <= response.status < 400:
            raise _Failure(f"HTTP {response.status} redirects elsewhere; give the final URL", is_temporary=False)
        if response.status != 200:
            is_temporary = response.status in _TEMPORARY or response.status >= 500
            wait = _wait_sec(response.headers.get("Retry-After"))
            message = self._plain(_message(content))
            reason = f"HTTP {response.status}{message and f': {message}'}"
            raise _Failure(reason, is_temporary=is_temporary, wait_sec=wait)
        answer = answer_of(_decoded(content))
        if answer is None:
            raise _Failure("the response holds no text")
        return answer

    def _plain(self, text: str) -> str:
        """Return the beginning of a text from the server on one line, with secrets hidden, in any case of letters."""
        for secret in self._secrets:
            text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
        return " ".join(text.split())[:_LONGEST_REASON]

    def _back_off(self, request: Request, number: int) -> float:
        """Return the seconds before the next try: doubled with every try, times a random factor in [.5, 1.5)."""
        spread = derive(self._settings.seed, "back-off", request.index, request.attempt, number) / 2**63
        return min(_FIRST_WAIT_SEC * 2**number, _LONGEST_WAIT_SEC) * (0.5 + spread)


class _Deadline:
    """A context that ends with TimeoutError when it takes longer, even if the server sends a byte now and then."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection, self._sock, self._has_passed = connection, None, False
        self._timer = threading.Timer(seconds, self._pass)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._has_passed:
            raise TimeoutError

    def watch(self, sock: Any) -> None:
        """Keep the socket: the connection forgets it while a response is read that the server ends by closing."""
        self._sock = sock
        if self._has_passed:
            raise TimeoutError

    def _pass(self) -> None:
        self._has_passed = True
        sock = self._sock or self._connection.sock
        with contextlib.suppress(OSError):
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)  # the thread that reads from it wakes up


class _Failure(Exception):
    """A try without an answer; if it `is_temporary`, another try may succeed."""

    def __init__(self, reason: str, *, is_temporary: bool = True, wait_sec: float = 0.0) -> None:
        super().__init__(reason)
        self.is_temporary, self.wait_sec = is_temporary, wait_sec


def _got(done: queue.SimpleQueue[tuple[Request, Answer] | BaseException]) -> tuple[Request, Answer]:
    got = done.get()
    if isinstance(got, BaseException):
        raise got
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
    """Return the error message in a response, or the response as text."""
    found = _decoded(response, SERVER_ERROR)
    if found is None:
        return response.decode(errors="replace")
    error = found.get("error", found)
    return error if isinstance(error, str) else error["message"]


def _decoded(response: bytes, schema: Schema = object) -> Any:
    """Return the JSON value in a response; None if it has no JSON, or JSON of another shape."""
    try:
        return check_shape(loads(response), schema, where="response")
    except (ValueError, DataError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
