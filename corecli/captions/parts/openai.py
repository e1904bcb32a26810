"""Requests and answers in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

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
        choice = response["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(text, str | None):
        return None
    whole = (text or "").encode(errors="replace").decode()  # JSON may hold halves of characters
    return Answer(raw=whole, finish_reason=str(reason or "stop"))
