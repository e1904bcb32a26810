"""Check and run `corecli captions`."""

from __future__ import annotations

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from corecli.base import config as cfg
from corecli.base.errors import DataError, UsageError
from corecli.base.outcome import Outcome, produced, to_json_line
from corecli.captions.parts.assignments import Assignments
from corecli.captions.parts.backend import MODEL_OPTIONS, RequestsWritten, Settings
from corecli.captions.parts.concepts import Concepts
from corecli.captions.parts.rounds import Rules, Settled, settle
from corecli.captions.parts.work import Answers, finished, open_folder, publish
from corecli.commands.captions import backend, backgrounds
from corecli.commands.captions.backend import Requester
from corecli.commands.captions.inputs import assign, fingerprints, job_of, read_lists
from corecli.commands.captions.options import Config
from corecli.commands.captions.records import notes, records, report
from corecli.commands.parts.inputs import check_file, shard
from corecli.engine.signals import StopAtOnce

IS_ALONE = True  # runs in one process


def check(config: Config) -> dict[str, Any]:
    """Return what a run would write. Errors: as `run`, as far as they are visible before any request."""
    _check_backend(config)
    check_file(_file(config))
    num, concepts = len(_indices(config)), read_lists(config.concepts)
    if not config.ask_backgrounds:
        _assign(config, concepts)
    return {"captions": num, "num_concepts": len(concepts.concepts), "out": str(_file(config) or "-")}


def targets(config: Config) -> list[Path]:
    """Return what a run locks: its outputs, and the file that it adds backgrounds to."""
    return cfg.outputs(config) + [Path(config.backgrounds)] * config.ask_backgrounds


def run(config: Config) -> Outcome:
    """Write captions. Errors: UsageError, DataError, CannotCreateError, UnavailableError, InterruptedAfterSaving."""
    out = _file(config)
    try:
        with nullcontext() if out is None else StopAtOnce("every answer is kept"):
            num_added = _complete_backgrounds(config) if config.ask_backgrounds else 0
            if num_added:  # the ingested answers were backgrounds
                config = dataclasses.replace(config, ingest=())
            return _to_stdout(config) if out is None else _to_file(config, out)
    except RequestsWritten as written:
        note = f"wrote {written.num} requests; answer them, then give the answers with --ingest"
        return produced(written.path, notes=(note,), requests=written.num)


def _to_file(config: Config, out: Path) -> Outcome:
    concepts = read_lists(config.concepts)
    assignments, identity = _assign(config, concepts), _identity(config, concepts)
    existing = finished(out, identity, force=config.force)
    if existing is not None:
        return produced(out, notes=("already there, left alone",), **existing)
    settings = _settings(config, identity)
    requester = Requester(config.backend, settings, quiet=config.quiet)
    answers = Answers(open_folder(out, identity, force=config.force))
    try:
        settled, speed = _settle(config, assignments, requester, answers)
        lines = (to_json_line(record).encode() + b"\n" for record in _records(config, settings, assignments, settled))
        counts = report(settled)
        publish(out, lines, counts)
    finally:
        answers.close()
    return produced(out, notes=(*concepts.notes, *notes(counts, speed)), **counts)


def _to_stdout(config: Config) -> Outcome:
    concepts = read_lists(config.concepts)
    assignments, settings = _assign(config, concepts), _settings(config, _identity(config, concepts))
    requester = Requester(config.backend, settings, quiet=config.quiet)
    settled, speed = _settle(config, assignments, requester, Answers())
    made = tuple(_records(config, settings, assignments, settled))
    shown = (*concepts.notes, *notes(report(settled), speed))
    return Outcome(lines=tuple(r["caption"] for r in made), records=made, notes=shown, for_people=True)


def _settle(config: Config, assignments: Assignments, requester: Requester, answers: Answers) -> tuple[Settled, str]:
    """Return the captions that were kept, and how fast new answers arrived. Errors: DataError if none was kept."""
    started = time.monotonic()
    rules = Rules(
        retries=config.retries,
        on_missing=config.on_missing,
        on_duplicate=config.on_duplicate,
        min_words=config.min_words or (3 if config.form == "sentence" else 1),
        max_words=config.max_words,
    )
    settled = settle(assignments, _indices(config), answers, requester.into(answers, "captions"), rules)
    if not settled.kept:
        faults = ", ".join(f"{count} {fault}" for fault, count in settled.total("dropped").items())
        raise DataError(f"no caption was kept: dropped {faults}", hint="--force requests all of them again")
    seconds = time.monotonic() - started
    return (
        settled,
        f"{requester.num_answers} answers in {seconds:.1f} s, {requester.num_answers / seconds:.4g} a second",
    )


def _complete_backgrounds(config: Config) -> int:
    """Request the backgrounds that --backgrounds does not have; return for how many concepts."""
    path = Path(config.backgrounds)
    names = backgrounds.missing(path, read_lists(config.concepts).concepts)
    if names:
        run = {name: getattr(config, name) for name in ("seed", "backend", "model", *MODEL_OPTIONS)}
        identity = {"concepts": names, **run}
        requester = Requester(config.backend, _settings(config, identity), quiet=config.quiet)
        backgrounds.complete(path, names, requester, identity=identity, retries=config.retries, force=config.force)
    return len(names)


def _check_backend(config: Config) -> None:
    """Check the options of the backend. Errors: UsageError, and those of the backend."""
    options = cfg.described(Config)
    values = {name: getattr(config, name) for name in options} | {"out": _file(config)}
    changed = {name: value for name, value in values.items() if value != options[name][0].default}
    backend.check_options(config.backend, changed)
    reads_prompts = backend.constants(config.backend)["NEEDS_MODEL"]
    if config.ask_backgrounds and not (reads_prompts and Path(config.backgrounds).suffix == ".json"):
        hint = "choose a --backend with a language model"
        raise UsageError("--ask-backgrounds needs a language model and --backgrounds FILE.json", hint=hint)
    backend.check(config.backend, _backend_settings(config, model=config.model or "", job=""))


def _settings(config: Config, identity: dict[str, Any]) -> Settings:
    """Return what the backend reads. Errors: UsageError, and those of a model that cannot be found."""
    model = backend.find_model(config.backend, config.model)
    return _backend_settings(config, model=model, job=job_of(identity))


def _backend_settings(config: Config, *, model: str, job: str) -> Settings:
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Settings) if hasattr(config, f.name)}
    own = backend.own_options(config.backend, config.set)
    return Settings(**{**shared, "model": model, "job": job, "options": own})


def _assign(config: Config, concepts: Concepts) -> Assignments:
    return assign(
        concepts,
        seed=config.seed,
        templates=config.templates,
        backgrounds=config.backgrounds,
        examples=config.examples,
    )


def _identity(config: Config, concepts: Concepts) -> dict[str, Any]:
    """Return what makes two runs the same: the settings and the contents of the inputs."""
    inputs = fingerprints(
        concepts,
        config.concepts,
        backgrounds=config.backgrounds if config.templates[1] else None,
        examples=config.examples,
        model=config.model,
    )
    own = {"set": list(config.set)} if config.set else {}
    return {**cfg.identity(config, inputs), **own}


def _records(config: Config, settings: Settings, assignments: Assignments, settled: Settled) -> Any:
    params = backend.recorded(config.backend, settings)
    return records(settled, assignments, backend=config.backend, model=config.model, params=params)


def _indices(config: Config) -> range:
    """Return the numbers of the captions in the shard. Errors: UsageError."""
    index, num_shards = shard(config.shard)
    return range(index, config.num, num_shards)


def _file(config: Config) -> Path | None:
    """Return the file of --out, or None for stdout."""
    return None if config.out is None or str(config.out) == "-" else config.out
