"""From a plan and a backend to captions: ask, judge in the order of the plan, and ask again what was not good.

The judgment is a function of the answers, so a rerun that reads the answers of an earlier run comes to the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from corecli.captions.parts.backend import Answer, Request
from corecli.captions.parts.judge import FAULTS, Judged, judge, normalized
from corecli.captions.parts.plan import Plan, Planned
from corecli.captions.parts.work import Answers

Ask = Callable[[Iterator[Request], int], None]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What becomes of captions that are not good; a fault that is not named is retried."""

    retries: int
    on_missing: str  # warn, retry or drop
    on_duplicate: str  # keep, retry or drop
    min_words: int
    max_words: int

    def forgives(self, fault: str) -> bool:
        """Whether a caption is kept all the same."""
        return (fault, self._of(fault)) in (("missing", "warn"), ("duplicate", "keep"))

    def retries_of(self, fault: str) -> int:
        """How often another caption is asked for."""
        return 0 if self._of(fault) == "drop" else self.retries

    def _of(self, fault: str) -> str:
        return {"missing": self.on_missing, "duplicate": self.on_duplicate}.get(fault, "retry")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A caption that was kept."""

    planned: Planned
    attempt: int
    answer: Answer
    judged: Judged
    is_duplicate: bool


@dataclass(kw_only=True)
class Settled:
    """What was kept, by index, and counts of (template, source, event, fault) over all that happened.

    Events: kept, retried, dropped, warned.
    """

    kept: dict[int, Kept] = field(default_factory=dict)
    counts: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)

    def table(self, column: int) -> dict[str, dict[str, Any]]:
        """By template (0) or source (1): planned, kept, and retried, dropped and warned by fault."""
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
        """How often an event came, by fault."""
        found = Counter[str]()
        for (_, _, name, fault), count in self.counts.items():
            if name == event:
                found[fault] += count
        return {fault: found[fault] for fault in ("", *FAULTS) if found[fault]}


def settle(plan: Plan, indices: Sequence[int], answers: Answers, ask: Ask, rules: Rules) -> Settled:
    """Ask for captions until each is kept or dropped. `ask` adds an answer to `answers` for every request."""
    settled, seen = Settled(), set[bytes]()
    attempt = 0
    while indices:
        lacking = [index for index in indices if (index, attempt) not in answers]
        if lacking:
            ask((request(plan, index, attempt) for index in lacking), len(lacking))
        again = [index for index in indices if not _settle_one(plan, index, attempt, answers, rules, settled, seen)]
        indices, attempt = again, attempt + 1
    return settled


def request(plan: Plan, index: int, attempt: int) -> Request:
    """What is asked for a caption: at a later attempt the same, with another seed."""
    planned = plan.caption(index)
    return Request(
        index=index, attempt=attempt, seed=plan.seed_of(index, attempt), prompt=planned.prompt, planned=planned
    )


def _settle_one(
    plan: Plan, index: int, attempt: int, answers: Answers, rules: Rules, settled: Settled, seen: set[bytes]
) -> bool:
    """Keep or drop a caption, and tell; False when it shall be asked for again."""
    planned, answer = plan.caption(index), answers[index, attempt]
    judged = judge(answer, planned.concept.name, min_words=rules.min_words, max_words=rules.max_words)
    content = hashlib.blake2b(normalized(judged.caption).encode(), digest_size=12).digest()
    is_duplicate = content in seen
    faults = [fault for fault in (judged.fault, "duplicate" if is_duplicate else None) if fault is not None]
    fault = next((fault for fault in faults if not rules.forgives(fault)), None)
    row = planned.template, planned.concept.source
    if fault is not None:
        goes_on = attempt < rules.retries_of(fault)
        settled.counts[*row, "retried" if goes_on else "dropped", fault] += 1
        return not goes_on
    for forgiven in faults:
        settled.counts[*row, "warned", forgiven] += 1
    settled.counts[*row, "kept", ""] += 1
    seen.add(content)
    settled.kept[index] = Kept(
        planned=planned, attempt=attempt, answer=answer, judged=judged, is_duplicate=is_duplicate
    )
    return True
