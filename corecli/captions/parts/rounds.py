"""Send requests in rounds: judge the answers in the order of the captions, and repeat what was not good.

The judgment is a function of the answers, so a rerun that reads the answers of an earlier run has the same result.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from corecli.captions.parts.assignments import Assignment, Assignments
from corecli.captions.parts.backend import Answer, Request
from corecli.captions.parts.judge import FAULTS, Judged, judge, normalized
from corecli.captions.parts.work import Answers

Send = Callable[[Iterator[Request], int], None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to do with captions that are not good. A fault that is not listed here is retried."""

    retries: int
    on_missing: str  # warn, retry or drop
    on_duplicate: str  # keep, retry or drop
    min_words: int
    max_words: int

    def forgives(self, fault: str) -> bool:
        """Whether a caption is kept all the same."""
        return (fault, self._of(fault)) in (("missing", "warn"), ("duplicate", "keep"))

    def retries_of(self, fault: str) -> int:
        """Return how often another caption is requested."""
        return 0 if self._of(fault) == "drop" else self.retries

    def _of(self, fault: str) -> str:
        return {"missing": self.on_missing, "duplicate": self.on_duplicate}.get(fault, "retry")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A caption that was kept."""

    assignment: Assignment
    attempt: int
    answer: Answer
    judged: Judged
    is_duplicate: bool


@dataclass(kw_only=True)
class Settled:
    """The captions that were kept, by index, and counts of (template, source, event, fault).

    Events: kept, retried, dropped, warned.
    """

    kept: dict[int, Kept] = field(default_factory=dict)
    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)

    def table(self, column: int) -> dict[str, dict[str, Any]]:
        """Return counts by template (0) or source (1): planned, kept, and retried, dropped and warned by fault."""
        found: dict[str, dict[str, Any]] = {}
        for key, count in sorted(self.counts.items()):
            row = found.setdefault(key[column], {"planned": 0, "kept": 0, "retried": {}, "dropped": {}, "warned": {}})
            _, _, event, fault = key
            if event in ("kept", "dropped"):
                row["planned"] += count
            if event == "kept":
                row["kept"] += count
            else:
                row[event][fault] = row[event].get(fault, 0) + count
        return found

    def total(self, event: str) -> dict[str, int]:
        """Return how often an event happened, by fault."""
        found = Counter[str]()
        for (_, _, name, fault), count in self.counts.items():
            if name == event:
                found[fault] += count
        return {fault: found[fault] for fault in ("", *FAULTS) if found[fault]}


def settle(assignments: Assignments, indices: Sequence[int], answers: Answers, send: Send, rules: Rules) -> Settled:
    """Request captions until each is kept or dropped. `send` adds an answer to `answers` for every request."""
    settled, seen = Settled(), set[bytes]()
    attempt = 0
    while indices:
        missing = [index for index in indices if (index, attempt) not in answers]
        if missing:
            send((request(assignments, index, attempt) for index in missing), len(missing))
        again = [i for i in indices if not _settle_one(assignments, i, attempt, answers, rules, settled, seen)]
        indices, attempt = again, attempt + 1
    return settled


def request(assignments: Assignments, index: int, attempt: int) -> Request:
    """Return the request for a caption; later attempts differ only in the seed."""
    assignment, seed = assignments.caption(index), assignments.seed_of(index, attempt)
    return Request(index=index, attempt=attempt, seed=seed, prompt=assignment.prompt, assignment=assignment)


def _settle_one(
    assignments: Assignments,
    index: int,
    attempt: int,
    answers: Answers,
    rules: Rules,
    settled: Settled,
    seen: set[bytes],
) -> bool:
    """Keep or drop a caption and count it; return False if it is to be requested again."""
    assignment, answer = assignments.caption(index), answers[index, attempt]
    judged = judge(answer, assignment.concept.name, min_words=rules.min_words, max_words=rules.max_words)
    content = hashlib.blake2b(normalized(judged.caption).encode(), digest_size=12).digest()
    is_duplicate = content in seen
    faults = [fault for fault in (judged.fault, "duplicate" if is_duplicate else None) if fault is not None]
    fault = next((fault for fault in faults if not rules.forgives(fault)), None)
    row = assignment.template, assignment.concept.source
    if fault is not None:
        goes_on = attempt < rules.retries_of(fault)
        settled.counts[*row, "retried" if goes_on else "dropped", fault] += 1
        return not goes_on
    for forgiven in faults:
        settled.counts[*row, "warned", forgiven] += 1
    settled.counts[*row, "kept", ""] += 1
    seen.add(content)
    settled.kept[index] = Kept(
        assignment=assignment, attempt=attempt, answer=answer, judged=judged, is_duplicate=is_duplicate
    )
    return True
