"""What a caption backend is: an object that answers requests, one for every attempt at a caption.

Every module of `corecli/captions/` is a backend. It declares these constants as literals:

- NEEDS_MODEL: whether it is a language model, so that --model is required and the options in MODEL_OPTIONS apply.
- USES: the other options of `corecli captions` that apply to it.
- NEEDS (optional): options that it requires besides --model, each with the reason.
- MODEL_FILES (optional): patterns of the files that it reads, if its --model is a folder or a hub id.

It defines `open_backend(settings) -> Backend`. It may define a dataclass `Options`, whose fields are set with
`--set NAME=VALUE`, and `check(settings)`, which raises the errors that are visible without loading anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from corecli.captions.parts.assignments import Assignment
from corecli.captions.parts.prompts import Prompt

Api = Literal["completions", "chat"]
MODEL_OPTIONS = ("api", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
STOP = "\n"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One attempt at a caption, or at the backgrounds of a concept, which have no assignment."""

    index: int
    attempt: int
    seed: int
    prompt: Prompt
    assignment: Assignment | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The text of an answer, unchanged, and why it ends there: stop, length or another word of the backend."""

    raw: str
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a run. A backend reads those that apply to it, and its own `Options` in `options`.

    job: a short name of the run. The five options of decoding are always sent to a server, so that its own defaults
    never apply.
    """

    seed: int
    job: str
    model: str
    api: Api
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int
    extensions: bool
    url: str
    key_env: str
    concurrency: int
    timeout_sec: float
    tries: int
    batch_size: int
    device: str
    precision: str
    form: str
    write_requests: Path | None
    ingest: tuple[Path, ...]
    options: Any = None


class Backend(Protocol):
    """Answers requests."""

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield every request with its answer, in any order.

        Take requests only as fast as they can be answered. An answer is kept as soon as it is yielded, and a request
        that has an answer is not sent again.
        """
        ...


class RequestsWritten(Exception):
    """Ends a run whose backend wrote its requests to the file `path`, to be answered elsewhere. It is not an error."""

    def __init__(self, path: Path, num: int) -> None:
        super().__init__(f"{num} requests are in {path}")
        self.path, self.num = path, num
