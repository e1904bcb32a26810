"""The backend of a run: check its options, open it, and keep its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UnavailableError, UsageError
from corecli.captions.parts.backend import MODEL_OPTIONS, Request, Settings
from corecli.captions.parts.work import Answers
from corecli.engine.progress import Progress

if TYPE_CHECKING:
    from corecli.captions.parts.rounds import Send

_FOLDER = "captions"
_DEFAULTS: dict[str, Any] = {"USES": (), "NEEDS": {}, "MODEL_FILES": None}


def constants(backend: str) -> dict[str, Any]:
    """Return what a backend declares, without importing it; `APPLIES` names all options that apply to it."""
    found = {**_DEFAULTS, **registry.constants(_FOLDER, backend)}
    of_models = ("model", *MODEL_OPTIONS) if found["NEEDS_MODEL"] else ()
    return {**found, "APPLIES": (*of_models, *found["USES"])}


def check_options(backend: str, changed: Mapping[str, Any]) -> None:
    """Check that options with a value other than the default apply to the backend, and that none is missing.

    Errors: UsageError.
    """
    known = {name: constants(name)["APPLIES"] for name in registry.choices(_FOLDER)}
    for option in changed:
        using = [name for name, options in known.items() if option in options]
        if using and backend not in using:
            reason = f"{cfg.flag(option)} does not apply to --backend {backend}"
            raise UsageError(reason, hint=f"it is an option of {' and '.join(using)}")
    declared = constants(backend)
    needs = {**({"model": None} if declared["NEEDS_MODEL"] else {}), **declared["NEEDS"]}
    for option, why in needs.items():
        if not changed.get(option):
            raise UsageError(f"--backend {backend} needs {cfg.flag(option)}", hint=why)


def check(backend: str, settings: Settings) -> None:
    """Raise the errors of a backend that are visible without loading anything."""
    module = registry.load(_FOLDER, backend, "backend")
    if hasattr(module, "check"):
        module.check(settings)


def own_options(backend: str, items: tuple[str, ...]) -> Any:
    """Return the backend's own `Options` with values from NAME=VALUE items; None if it has none. Errors: UsageError."""
    kind = getattr(registry.load(_FOLDER, backend, "backend"), "Options", None)
    given = cfg.named_values(items)
    if kind is None:
        if given:
            raise UsageError(f"--backend {backend} has no options for --set")
        return None
    return kind(**cfg.parse_fields(kind, given, where=backend))


def find_model(backend: str, model: str | None) -> str:
    """Return the name of a model, or its folder if the backend reads one.

    Errors: MissingInputError, DataError; UnavailableError for a model that cannot be downloaded.
    """
    patterns = constants(backend)["MODEL_FILES"]
    if patterns is None:
        return model or ""
    from corecli.nets.weights.hub import find_folder

    return str(find_folder(str(model), patterns=patterns))


def recorded(backend: str, settings: Settings) -> dict[str, Any]:
    """Return the options that every caption records as `params`."""
    declared = constants(backend)
    names = MODEL_OPTIONS if declared["NEEDS_MODEL"] else declared["USES"]
    own = {} if settings.options is None else dataclasses.asdict(settings.options)
    return {**{name: getattr(settings, name) for name in names}, **own}


class Requester:
    """Sends requests to an open backend and keeps the answers. Errors: those of `open_backend`."""

    def __init__(self, backend: str, settings: Settings, *, quiet: bool) -> None:
        self._backend = registry.load(_FOLDER, backend, "backend").open_backend(settings)
        self._quiet = quiet
        self.num_answers = 0

    def into(self, answers: Answers, label: str) -> Send:
        """Return a function that sends requests and adds every answer to `answers` as soon as it arrives."""

        def send(requests: Iterator[Request], num: int) -> None:
            with Progress(label, total=num, shown=not self._quiet) as progress:
                try:
                    for request, answer in self._backend.answers(requests):
                        answers.add((request.index, request.attempt), answer)
                        self.num_answers += 1
                        progress.advance()
                except UnavailableError as error:
                    kept = "the answers so far are kept; run the same line again to resume"
                    error.hint = kept if answers.stay else "with --out FILE, the answers so far would be kept"
                    raise

        return send
