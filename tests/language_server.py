"""A server with OpenAI's API in a thread, with faults; an answer is a function of the prompt and the seed."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str | None
FAULTS = ("late", "busy", "broken", "garbage", "hangs up")


def words_of(body: dict[str, Any]) -> str:
    """Return the words of the requested caption."""
    if "messages" in body:
        return body["messages"][-1]["content"]
    return body["prompt"].rsplit("\n", 1)[-1].removesuffix(" =>")


def say(body: dict[str, Any], *, flawed: bool = True) -> tuple[str, str]:
    """Return (text, finish_reason); of 20 answers, one is empty and one is cut."""
    draw = zlib.crc32(json.dumps([words_of(body), body["seed"]]).encode())
    prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    if prompt.startswith("List ten"):
        return " forest, the old town, and shore.", "stop"
    if flawed and draw % 20 == 0:
        return "\n", "stop"
    if flawed and draw % 20 == 1:
        return f" Somewhere there is {words_of(body)} and it is so very", "length"
    return f' "A picture of {words_of(body).replace(", ", " and ")}, number {draw}."', "stop"


class LanguageServer:
    """`fault(body, number of the try)` says what goes wrong with a request; `bodies` are those that were answered."""

    def __init__(self, fault: Callable[[dict[str, Any], int], Fault] = lambda body, number: None) -> None:
        self.fault, self.flawed = fault, True
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.tries: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.elsewhere, self.poured = "", 0
        self.late_sec, self.dies_after = 1.0, float("inf")
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> LanguageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def next_fault(self, path: str, body: dict[str, Any]) -> Fault:
        with self._lock:
            key = json.dumps(body, sort_keys=True)
            self.tries[key] += 1
            if len(self.bodies) >= self.dies_after:
                return "hangs up"
            fault = "lost" if path not in ("/v1/completions", "/v1/chat/completions") else None
            fault = fault or self.fault(body, self.tries[key] - 1)
            if fault is None:
                self.bodies.append(body)
            else:
                self.faults[fault] += 1
            return fault


class _Http(ThreadingHTTPServer):
    owner: LanguageServer
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients are killed in these tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner = self.server.owner
        owner.headers.append(dict(self.headers))
        fault = owner.next_fault(self.path, body)
        if fault == "late":
            time.sleep(owner.late_sec)
        if fault in ("late", "hangs up"):
            self.close_connection = True
        elif fault == "busy":
            self._send(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.02"})
        elif fault == "broken":
            self._send(500, b"out of memory")
        elif fault == "refused":
            self._send(401, b'{"error": {"message": "no such key"}}')
        elif fault == "lost":
            self._send(404, b"nothing here")
        elif fault == "drips":
            self._drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b" ")
        elif fault == "drips headers":
            self._drip(b"HTTP/1.1 200 OK\r\n", b"X-Slow: y\r\n")
        elif fault == "huge":
            self._send(200, b"", {"Content-Length": str(6 << 30)})
            self._pour()
        elif fault == "echo":
            message = f"Incorrect API key: {self.headers['Authorization'].upper()}"
            self._send(401, json.dumps({"error": {"message": "x" * 125 + message}}).encode())
        elif fault == "echo as status":
            self.wfile.write(self.headers["Authorization"].encode() + b"\r\n\r\n")
            self.close_connection = True
        elif fault == "redirect":
            self._send(307, b"", {"Location": owner.elsewhere})
        elif fault == "garbage":
            self._send(200, b'{"choices": [{"te')
        else:
            text, reason = say(body, flawed=owner.flawed)
            content: dict[str, Any] = {"text": text} if "prompt" in body else {"message": {"content": text}}
            self._send(200, json.dumps({"choices": [{**content, "finish_reason": reason}]}).encode())

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    def _drip(self, first: bytes, drop: bytes) -> None:
        """Send a drop every 0.05 seconds, for at most ten seconds."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(first)
            for _ in range(200):
                self.wfile.write(drop)
                time.sleep(0.05)

    def _pour(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(6 << 10):
                self.wfile.write(b" " * (1 << 20))
                self.server.owner.poured += 1

    def log_message(self, *_: Any) -> None:
        """Nothing."""
