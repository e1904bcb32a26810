"""Requests and answers in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from corecli.base.documents import check
from corecli.base.errors import DataError
from corecli.base.schemas import SERVER_ANSWER
from corecli.captions.parts.backend import STOP, Answer, Request, Settings


def body(request: Request, settings: Settings) -> dict[str, Any]:
    """Return a request of the completions or the chat completions API."""
    found: dict[str, Any] = {"model": settings.model}
    if settings.api == "chat":
        found["messages"] = request.prompt.messages()  # no stop: some models begin with an empty line
    else:
        found |= {"prompt": request.prompt.text(), "stop": [STOP]}
    found |= {"temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}
    if settings.extensions:
        found |= {"top_k": settings.top_k or -1, "repetition_penalty": settings.repetition_penalty}
    return {**found, "seed": request.seed}


def answer_of(response: Any) -> Answer | None:
    """Return the answer in a decoded response, or None if there is none."""
    try:
        choices = check(response, SERVER_ANSWER, where="response")["choices"]
    except DataError:
        return None
    if not choices:
        return None
    choice = choices[0]
    text = choice["message"]["content"] if choice.get("message") else choice["text"]
    whole = (text or "").encode(errors="replace").decode()  # JSON may hold halves of characters
    return Answer(raw=whole, finish_reason=str(choice.get("finish_reason") or "stop"))
