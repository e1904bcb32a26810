"""What holds for every caption backend: its declarations, its answers, and the options that apply to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from language_models import write_llama
from language_server import LanguageServer

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.captions.parts.assignments import Assignments
from corecli.captions.parts.backend import MODEL_OPTIONS, Request, RequestsWritten, Settings
from corecli.captions.parts.concepts import read_backgrounds, read_concepts
from corecli.captions.parts.prompts import read_examples
from corecli.captions.parts.rounds import request
from corecli.cli.app import run_line
from corecli.commands.captions.backend import check_options, constants, own_options
from corecli.commands.captions.options import Config

BACKENDS = registry.choices("captions")
OPTIONS = {name: field.default for name, (field, _, _) in cfg.described(Config).items()}
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@dataclass(frozen=True)
class Found:
    """What a backend needs to run here: a server, and a folder with a language model."""

    url: str
    folder: Path

    def settings(self, backend: str) -> Settings:
        shared: dict[str, Any] = {f.name: OPTIONS.get(f.name) for f in fields(Settings)}
        shared |= {"url": self.url, "device": "cpu", "max_tokens": 9, "batch_size": 3, "job": "0" * 12}
        shared |= {"model": self.model() if constants(backend)["MODEL_FILES"] else "m"}
        shared |= {"write_requests": self.folder / "requests.jsonl", "options": own_options(backend, ())}
        return Settings(**shared)

    def model(self) -> str:
        folder = self.folder / "model"
        if not folder.exists():
            pytest.importorskip("transformers")
            write_llama(folder)
        return str(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    with LanguageServer() as server:
        yield Found(server.url, tmp_path_factory.mktemp("found"))


def requests() -> list[Request]:
    assignments = Assignments(
        seed=0,
        concepts=read_concepts(["everyday", "places", "textures"]).concepts,
        templates=(0.4, 0.3, 0.3),
        backgrounds=read_backgrounds("everyday"),
        examples=read_examples(None),
    )
    return [request(assignments, index, attempt) for index in range(4) for attempt in range(2)]


def answers(backend: str, settings: Settings, wanted: list[Request]) -> dict[tuple[int, int], Any] | None:
    """Answers by (index, attempt); None if the requests were written to a file, which must exist."""
    opened = registry.load("captions", backend).open_backend(settings)
    try:
        pairs = list(opened.answers(iter(wanted)))
    except RequestsWritten as ended:
        written = ended
    else:
        assert len(pairs) == len(wanted)
        return {(asking.index, asking.attempt): answer for asking, answer in pairs}
    assert (written.num, len(written.path.read_text().splitlines())) == (len(wanted), len(wanted))
    return None


@each_backend
def test_declarations_name_options(backend: str) -> None:
    declared = constants(backend)
    assert isinstance(declared["NEEDS_MODEL"], bool)
    named = {*declared["USES"], *declared["NEEDS"]}
    assert named <= OPTIONS.keys() and not named & {"model", *MODEL_OPTIONS}
    assert declared["title"]
    assert own_options(backend, ()) is not None or not declared["Options"]


@each_backend
def test_every_request_is_answered_whatever_the_order(backend: str, found: Found) -> None:
    settings, wanted = found.settings(backend), requests()
    together = answers(backend, settings, wanted)
    if together is None:
        return
    assert together.keys() == {(each.index, each.attempt) for each in wanted}
    assert all(isinstance(answer.raw, str) and answer.finish_reason for answer in together.values())
    assert answers(backend, settings, wanted[::-1]) == together
    assert answers(backend, settings, wanted[2:3]) == {(1, 0): together[1, 0]}


@each_backend
def test_attempts_differ(backend: str, found: Found) -> None:
    """Unless the texts have no room for it, as bare words."""
    together = answers(backend, found.settings(backend), requests()) or {(0, 0): "", (0, 1): "none"}
    assert any(together[index, 0] != together[index, 1] for index, attempt in together if attempt == 0)


@each_backend
def test_options_of_other_backends_are_refused(backend: str) -> None:
    declared = constants(backend)
    needed: dict[str, Any] = dict.fromkeys([*declared["NEEDS"], *(("model",) if declared["NEEDS_MODEL"] else ())], "x")
    check_options(backend, needed)
    for name in needed:
        with pytest.raises(UsageError, match=f"--backend {backend} needs {cfg.flag(name)}"):
            check_options(backend, {other: value for other, value in needed.items() if other != name})
    others = {name for other in BACKENDS for name in constants(other)["APPLIES"]} - {*declared["APPLIES"]}
    for name in others:
        with pytest.raises(UsageError, match=f"{cfg.flag(name)} does not apply to --backend {backend}"):
            check_options(backend, {**needed, name: "x"})


@each_backend
def test_unknown_own_options_are_refused_in_one_line(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    declared = constants(backend)
    words = [f"--{name}=x.jsonl" for name in (*declared["NEEDS"], *(("model",) if declared["NEEDS_MODEL"] else ()))]
    assert run_line(["captions", "--backend", backend, "--set", "nope=1", "--dry-run", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_backends_are_imported_without_torch() -> None:
    load = partial("from corecli.base import registry; {}; import sys; sys.exit('torch' in sys.modules)".format)
    loads = "; ".join(f"registry.load('captions', {backend!r})" for backend in BACKENDS)
    assert subprocess.run([sys.executable, "-c", load(loads)], check=False).returncode == 0
