"""Check and run `corecli captions`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from corecli.base.errors import DataError
from corecli.base.outcome import Outcome, produced, to_json_line
from corecli.captions.batch import BatchWritten
from corecli.captions.parts.plan import Plan
from corecli.captions.parts.rounds import Rules, Settled, settle
from corecli.captions.parts.work import Answers, finished, open_folder, publish
from corecli.commands.captions.ask import Asking, complete_backgrounds, refuse_idle
from corecli.commands.captions.options import EVENTS, Config
from corecli.commands.captions.plan import Planned, fingerprint, make, read
from corecli.commands.captions.plan import identity as plan_identity
from corecli.commands.captions.plan import indices as plan_indices
from corecli.commands.parts.inputs import check_file
from corecli.engine.signals import StopAtOnce

IS_ALONE = True  # runs in one process


def check(config: Config) -> dict[str, Any]:
    """What would be written. Errors: as `run`, as far as they show before anything is asked."""
    refuse_idle(config)
    check_file(_file(config))
    indices = plan_indices(config)
    concepts = read(config).concepts
    if not config.ask_backgrounds:
        make(config)
    return {"captions": len(indices), "num_concepts": len(concepts), "out": str(_file(config) or "-")}


def run(config: Config) -> Outcome:
    """Write captions. Errors: UsageError, DataError, CannotCreateError, UnavailableError, InterruptedAfterSaving."""
    out = _file(config)
    try:
        with nullcontext() if out is None else StopAtOnce("every answer is kept"):
            asked = complete_backgrounds(config) if config.ask_backgrounds else 0
            return _to_stdout(config) if out is None else _to_file(config, out, ingests=not asked)
    except BatchWritten as written:
        note = f"{written.num} requests are to be answered; then --ingest the answers"
        return produced(written.path, notes=(note,), requests=written.num)


def _to_file(config: Config, out: Path, *, ingests: bool) -> Outcome:
    planned = make(config)
    identity = plan_identity(config)
    report = finished(out, identity, force=config.force)
    if report is not None:
        return produced(out, notes=("already there, left alone",), **report)
    asking = Asking(config, fingerprint(identity), ingests=ingests)
    folder = open_folder(out, identity, force=config.force)
    answers = Answers(folder)
    try:
        settled, speed = _settled(config, planned, asking, answers)
        report = _report(settled)
        publish(
            out,
            (to_json_line(record).encode() + b"\n" for record in _records(config, planned.plan, asking, settled)),
            report,
        )
    finally:
        answers.close()
    return produced(out, notes=(*planned.notes, *_notes(report, speed)), **report)


def _to_stdout(config: Config) -> Outcome:
    planned = make(config)
    asking = Asking(config, fingerprint(plan_identity(config)))
    settled, speed = _settled(config, planned, asking, Answers())
    records = tuple(_records(config, planned.plan, asking, settled))
    notes = (*planned.notes, *_notes(_report(settled), speed))
    return Outcome(lines=tuple(r["caption"] for r in records), records=records, notes=notes, for_people=True)


def _settled(config: Config, planned: Planned, asking: Asking, answers: Answers) -> tuple[Settled, str]:
    """What came of the plan, and how fast the answers came that were asked for now."""
    started = time.monotonic()
    rules = Rules(
        retries=config.retries,
        on_missing=config.on_missing,
        on_duplicate=config.on_duplicate,
        min_words=config.min_words or (3 if config.form == "sentence" else 1),
        max_words=config.max_words,
    )
    settled = settle(planned.plan, planned.indices, answers, asking.into(answers, "captions"), rules)
    if not settled.kept:
        faults = ", ".join(f"{count} {fault}" for fault, count in settled.total("dropped").items())
        raise DataError(f"no caption was kept: dropped {faults}", hint="--force asks again")
    seconds = time.monotonic() - started
    return settled, f"{asking.num_answers} answers in {seconds:.1f} s, {asking.num_answers / seconds:.4g} a second"


def _records(config: Config, plan: Plan, asking: Asking, settled: Settled) -> Iterator[dict[str, Any]]:
    """What is written of each caption that was kept, in the order of ids."""
    for index in sorted(settled.kept):
        kept = settled.kept[index]
        planned = kept.planned
        yield {
            "id": f"{index:09d}",
            "caption": kept.judged.caption,
            "concept": planned.concept.name,
            "class": planned.concept.label,
            "source": planned.concept.source,
            "template": planned.template,
            "second": planned.second or None,
            "examples": [example.id for example in planned.examples],
            "prompt": planned.prompt.digest(),
            "backend": config.backend,
            "model": config.model,
            "params": asking.params,
            "seed": plan.seed_of(index, kept.attempt),
            "raw": kept.answer.raw,
            "finish_reason": kept.answer.finish_reason,
            "checks": {"concept": kept.judged.has_concept, "duplicate": kept.is_duplicate},
            "attempt": kept.attempt,
        }


def _report(settled: Settled) -> dict[str, Any]:
    events = {event: settled.total(event) for event in EVENTS}
    tables = {"templates": settled.table(0), "sources": settled.table(1)}
    return {"captions": len(settled.kept), **events, **tables}


def _notes(report: dict[str, Any], speed: str) -> tuple[str, ...]:
    """The statistics as lines: in all, by template, by source."""
    whole = {"planned": sum(row["planned"] for row in report["templates"].values()), "kept": report["captions"]}
    lines = [f"{_told({**whole, **report})}; {speed}"]
    for name in ("templates", "sources"):
        lines += [f"{name[:-1]} {key}: {_told(row)}" for key, row in report[name].items()]
    return tuple(lines)


def _told(row: dict[str, Any]) -> str:
    happened = {event: ", ".join(f"{count} {fault}" for fault, count in row[event].items()) for event in EVENTS}
    told = (f"{event} {faults}" for event, faults in happened.items() if faults)
    return "; ".join([f"kept {row['kept']} of {row['planned']}", *told])


def _file(config: Config) -> Path | None:
    """The file of --out; None for stdout."""
    return None if config.out is None or str(config.out) == "-" else config.out
