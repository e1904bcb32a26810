"""What a backend is asked and what it answers; every public module of this folder is a backend.

A module has `open_backend(settings) -> Backend`. Answers may come in any order; what has been asked once is not asked
again, since every answer is kept as soon as it is yielded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from corecli.captions.parts.plan import Planned
from corecli.captions.parts.prompts import Prompt

Api = Literal["completions", "chat"]
STOP = "\n"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One attempt at a caption, or at the backgrounds of a concept, which have no plan."""

    index: int
    attempt: int
    seed: int
    prompt: Prompt
    planned: Planned | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The text that came back, as it came, and why it ends there: stop, length or another word of the backend."""

    raw: str
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a language model chooses words; all of it is always told, so that no server's own defaults apply."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What backends are made from; each reads what it has a use for."""

    seed: int
    api: Api
    model: str
    decoding: Decoding
    extensions: bool
    url: str
    key: str | None
    concurrency: int
    timeout_sec: float
    tries: int
    batch_size: int
    device: str
    precision: str
    form: str
    plan: str
    write_requests: Path | None
    ingest: tuple[Path, ...]


class Backend(Protocol):
    """Answers requests."""

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """An answer to each request, in any order; requests are taken as they can be worked on."""
        ...


def body(request: Request, settings: Settings) -> dict[str, Any]:
    """A request in the form of OpenAI's completions or chat completions."""
    decoding = settings.decoding
    told: dict[str, Any] = {"model": settings.model}
    if settings.api == "chat":
        told["messages"] = request.prompt.messages()  # no stop: some models begin with an empty line
    else:
        told |= {"prompt": request.prompt.text(), "stop": [STOP]}
    told |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": decoding.max_tokens}
    if settings.extensions:
        told |= {"top_k": decoding.top_k or -1, "repetition_penalty": decoding.repetition_penalty}
    return {**told, "seed": request.seed}


def answer_of(told: Any) -> Answer | None:
    """The answer in what a server has sent; None when there is none in it."""
    try:
        choice = told["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(text, str | None):
        return None
    whole = (text or "").encode(errors="replace").decode()  # JSON may hold halves of characters
    return Answer(raw=whole, finish_reason=str(reason or "stop"))
