"""Request backgrounds of concepts from a language model, and add them to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.documents import read_json
from corecli.base.errors import DataError
from corecli.base.files import write_json
from corecli.base.rng import derive
from corecli.captions.parts.assignments import SEED_BITS, without_backgrounds
from corecli.captions.parts.backend import Answer, Request
from corecli.captions.parts.concepts import Concept, read_backgrounds, tidy
from corecli.captions.parts.judge import clean
from corecli.captions.parts.prompts import ask_surroundings
from corecli.captions.parts.work import Answers, open_folder, remove_folder

if TYPE_CHECKING:
    from corecli.captions.parts.rounds import Send
    from corecli.commands.captions.backend import Requester

_MOST_WORDS = 6  # of a background


def missing(path: Path, concepts: Sequence[Concept]) -> list[str]:
    """Return the names of the objects without backgrounds in a file, which need not exist yet."""
    known = read_backgrounds(str(path)) if path.exists() else {}
    objects = [concept for concept in concepts if concept.kind == "object"]
    return list(dict.fromkeys(without_backgrounds(objects, known)))


def complete(
    path: Path, names: list[str], requester: Requester, *, identity: Mapping[str, Any], retries: int, force: bool
) -> None:
    """Request backgrounds for the named concepts and add them to a file; work in progress is kept beside it.

    `identity` describes the run and holds the seed. Errors: those of the backend; DataError naming concepts without an
    answer.
    """
    content = read_json(path, dict) if path.exists() else {}
    answers = Answers(open_folder(path, identity, force=force))
    try:
        send = requester.into(answers, "backgrounds")
        found = _surroundings(names, answers, send, seed=identity["seed"], retries=retries)
    finally:
        answers.close()
    write_json(path, {**content, **found})
    remove_folder(path)


def _surroundings(names: list[str], answers: Answers, send: Send, *, seed: int, retries: int) -> dict[str, list[str]]:
    """Return backgrounds by concept; a concept is requested again if an answer holds none."""
    found: dict[str, list[str]] = {}
    for attempt in range(retries + 1):
        left = [index for index, name in enumerate(names) if name not in found]
        unanswered = [index for index in left if (index, attempt) not in answers]
        if unanswered:
            send((_request(seed, index, attempt, names[index]) for index in unanswered), len(unanswered))
        listed = {names[index]: _listed(answers[index, attempt], names[index]) for index in left}
        found |= {name: words for name, words in listed.items() if words}
    silent = [name for name in names if name not in found]
    if silent:
        raise DataError(f"no backgrounds were returned for {len(silent)} concepts: {', '.join(silent[:5])}")
    return found


def _request(seed: int, index: int, attempt: int, name: str) -> Request:
    seed = derive(seed, "backgrounds", index, attempt) % 2**SEED_BITS
    return Request(index=index, attempt=attempt, seed=seed, prompt=ask_surroundings(name))


def _listed(answer: Answer, name: str) -> list[str]:
    """Return the comma-separated backgrounds in an answer; the last one of a truncated answer is left out."""
    parts = clean(answer.raw).split(",")
    if answer.finish_reason == "length":
        parts = parts[:-1]
    words = [tidy(part.strip().strip(".").removeprefix("and ").lower()) for part in parts]
    fitting = (word for word in words if word and len(word.split()) <= _MOST_WORDS and word != name.lower())
    return list(dict.fromkeys(fitting))
