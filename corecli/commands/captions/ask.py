"""Asking a backend: for captions, and before them for backgrounds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import DataError, UnavailableError, UsageError
from corecli.base.files import read_json, write_json
from corecli.base.rng import derive
from corecli.captions.parts import concepts
from corecli.captions.parts.backend import Answer, Decoding, Request, Settings
from corecli.captions.parts.judge import clean
from corecli.captions.parts.plan import SEED_BITS, without_backgrounds
from corecli.captions.parts.prompts import ask_surroundings
from corecli.captions.parts.work import Answers, open_folder, remove_folder
from corecli.commands.captions.plan import fingerprint, read
from corecli.engine.progress import Progress

if TYPE_CHECKING:
    from corecli.captions.parts.rounds import Ask
    from corecli.commands.captions.options import Config

_OF = {
    "form": ("grammar",),
    "model": ("server", "transformers", "batch"),
    "api": ("server", "transformers", "batch"),
    "extensions": ("server", "batch"),
    "url": ("server",),
    "key_env": ("server",),
    "concurrency": ("server",),
    "timeout_sec": ("server",),
    "tries": ("server",),
    "batch_size": ("transformers",),
    "write_requests": ("batch",),
    "ingest": ("batch",),
}
_DECODING = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
_MOST_WORDS = 6  # of a background


class Asking:
    """The backend of a line. Errors: those of opening it, UnavailableError for a model that cannot be had."""

    def __init__(self, config: Config, plan: str, *, ingests: bool = True) -> None:
        decoding = Decoding(**{name: getattr(config, name) for name in _DECODING})
        settings = Settings(
            seed=config.seed,
            api=config.api,
            model=_model(config),
            decoding=decoding,
            extensions=config.extensions,
            url=config.url,
            key=os.environ.get(config.key_env),
            concurrency=config.concurrency,
            timeout_sec=config.timeout_sec,
            tries=config.tries,
            batch_size=config.batch_size,
            device=config.device,
            precision=config.precision,
            form=config.form,
            plan=plan,
            write_requests=config.write_requests,
            ingest=config.ingest if ingests else (),
        )
        has_model = config.model is not None
        self.params = {"api": config.api, **dataclasses.asdict(decoding)} if has_model else {"form": config.form}
        self._backend = registry.load("captions", config.backend, "backend").open_backend(settings)
        self._quiet = config.quiet
        self.num_answers = 0

    def into(self, answers: Answers, label: str) -> Ask:
        """A function that asks and keeps every answer when it comes."""

        def ask(requests: Iterator[Request], num: int) -> None:
            with Progress(label, total=num, shown=not self._quiet) as progress:
                try:
                    for request, answer in self._backend.answers(requests):
                        answers.add((request.index, request.attempt), answer)
                        self.num_answers += 1
                        progress.advance()
                except UnavailableError as error:
                    kept = "the answers so far are kept; when the server is mended the same line resumes"
                    error.hint = kept if answers.stay else "with --out FILE the answers so far would be kept"
                    raise

        return ask


def refuse_idle(config: Config) -> None:
    """Errors: UsageError for an option that the backend has no use for, or one it lacks; those of a model's folder."""
    options = cfg.described(type(config))
    for name, backends in {**_OF, **dict.fromkeys(_DECODING, _OF["model"])}.items():
        if config.backend not in backends and getattr(config, name) != options[name][0].default:
            of = " and ".join(backends)
            raise UsageError(f"{cfg.flag(name)} does not apply to --backend {config.backend} (it is of {of})")
    if config.backend in _OF["model"] and not config.model:
        raise UsageError(f"--backend {config.backend} needs --model")
    if config.ask_backgrounds and (config.backend == "grammar" or Path(config.backgrounds).suffix != ".json"):
        reason = "--ask-backgrounds needs a language model and --backgrounds FILE.json"
        raise UsageError(reason, hint="the grammar cannot be asked")
    if config.backend == "batch" and str(config.out or "-") == "-":
        raise UsageError("--backend batch needs --out FILE", hint="answers are kept beside it from run to run")
    if config.backend == "transformers" and Path(str(config.model)).is_dir():
        registry.load("captions", "transformers").check_folder(Path(str(config.model)))


def complete_backgrounds(config: Config) -> int:
    """Ask for the backgrounds of concepts that have none, add them to the file; returns of how many concepts.

    Errors: as of asking; DataError naming concepts for which the backend knows none.
    """
    path = Path(config.backgrounds)
    told = read_json(path) if path.exists() else {}
    known = concepts.read_backgrounds(config.backgrounds) if path.exists() else {}
    objects = [concept for concept in read(config).concepts if concept.kind == "object"]
    lacking = list(dict.fromkeys(without_backgrounds(objects, known)))
    if not lacking:
        return 0
    model = {name: getattr(config, name) for name in ("seed", "backend", "model", "api", *_DECODING)}
    identity = {"concepts": lacking, **model}
    asking = Asking(config, fingerprint(identity))
    answers = Answers(open_folder(path, identity, force=config.force))
    try:
        found = _surroundings(config, lacking, answers, asking.into(answers, "backgrounds"))
    finally:
        answers.close()
    write_json(path, {**told, **found})
    remove_folder(path)
    return len(lacking)


def _surroundings(config: Config, names: list[str], answers: Answers, ask: Ask) -> dict[str, list[str]]:
    """Backgrounds by concept, asked for again where an answer held none."""
    found: dict[str, list[str]] = {}
    for attempt in range(config.retries + 1):
        left = [index for index, name in enumerate(names) if name not in found]
        lacking = [index for index in left if (index, attempt) not in answers]
        if lacking:
            ask((_request(config, index, attempt, names[index]) for index in lacking), len(lacking))
        listed = {names[index]: _listed(answers[index, attempt], names[index]) for index in left}
        found |= {name: words for name, words in listed.items() if words}
    silent = [name for name in names if name not in found]
    if silent:
        raise DataError(f"no backgrounds came back for {len(silent)} concepts: {', '.join(silent[:5])}")
    return found


def _request(config: Config, index: int, attempt: int, name: str) -> Request:
    seed = derive(config.seed, "backgrounds", index, attempt) % 2**SEED_BITS
    return Request(index=index, attempt=attempt, seed=seed, prompt=ask_surroundings(name))


def _listed(answer: Answer, name: str) -> list[str]:
    """The backgrounds in an answer: parted by commas; the last one of a truncated answer is left out."""
    parts = clean(answer.raw).split(",")
    if answer.finish_reason == "length":
        parts = parts[:-1]
    words = [concepts.tidy(part.strip().strip(".").removeprefix("and ").lower()) for part in parts]
    fitting = (word for word in words if word and len(word.split()) <= _MOST_WORDS and word != name.lower())
    return list(dict.fromkeys(fitting))


def _model(config: Config) -> str:
    """The name of the model, or the folder it is in."""
    if config.backend != "transformers":
        return config.model or ""
    from corecli.nets.weights.hub import find_folder

    return str(find_folder(str(config.model), patterns=registry.load("captions", "transformers").FILES))
