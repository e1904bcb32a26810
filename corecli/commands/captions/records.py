"""The results of `captions`: a record for every caption that was kept, and the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corecli.captions.parts.assignments import Assignments
from corecli.captions.parts.rounds import Settled

_EVENTS = ("retried", "dropped", "warned")


def records(
    settled: Settled, assignments: Assignments, *, backend: str, model: str | None, params: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the record of every caption that was kept, in the order of ids."""
    for index in sorted(settled.kept):
        kept = settled.kept[index]
        assignment = kept.assignment
        yield {
            "id": f"{index:09d}",
            "caption": kept.judged.caption,
            "concept": assignment.concept.name,
            "class": assignment.concept.label,
            "source": assignment.concept.source,
            "template": assignment.template,
            "second": assignment.second or None,
            "examples": [example.id for example in assignment.examples],
            "prompt": assignment.prompt.digest(),
            "backend": backend,
            "model": model,
            "params": params,
            "seed": assignments.seed_of(index, kept.attempt),
            "raw": kept.answer.raw,
            "finish_reason": kept.answer.finish_reason,
            "checks": {"concept": kept.judged.has_concept, "duplicate": kept.is_duplicate},
            "attempt": kept.attempt,
        }


def report(settled: Settled) -> dict[str, Any]:
    """Return how many captions were kept, retried, dropped and warned of: in total, by template and by source."""
    events = {event: settled.total(event) for event in _EVENTS}
    tables = {"templates": settled.table(0), "sources": settled.table(1)}
    return {"captions": len(settled.kept), **events, **tables}


def notes(report: dict[str, Any], speed: str) -> tuple[str, ...]:
    """Return the statistics as lines: in total, by template and by source."""
    total = {"planned": sum(row["planned"] for row in report["templates"].values()), "kept": report["captions"]}
    lines = [f"{_summary({**total, **report})}; {speed}"]
    for name in ("templates", "sources"):
        lines += [f"{name[:-1]} {key}: {_summary(row)}" for key, row in report[name].items()]
    return tuple(lines)


def _summary(row: dict[str, Any]) -> str:
    counts = {event: ", ".join(f"{count} {fault}" for fault, count in row[event].items()) for event in _EVENTS}
    shown = (f"{event} {faults}" for event, faults in counts.items() if faults)
    return "; ".join([f"kept {row['kept']} of {row['planned']}", *shown])
