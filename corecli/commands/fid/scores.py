"""Compute metrics and present their scores as lines and as JSON fields."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from corecli.base import registry
from corecli.base.errors import DataError, UsageError, about
from corecli.metrics.parts.metric import FOLDER, Metric, Score


class Inputs(Protocol):
    """Where the inputs of metrics come from: two sets, or two tables."""

    def require(self, metric: Metric) -> None:
        """Raise a UsageError or DataError that says why the metric is not available."""
        ...

    def arguments(self, metric: Metric) -> dict[str, Any]:
        """Return what the metric needs, and what it uses where that is available."""
        ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """Scores by name, and warnings about them."""

    scores: dict[str, Score] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def joined(self, other: Report) -> Report:
        """Return the scores and warnings of both."""
        return Report(scores={**self.scores, **other.scores}, warnings=(*self.warnings, *other.warnings))

    def lines(self) -> list[str]:
        """Return `name<TAB>value` for each score, followed by `<TAB>low<TAB>high` if it has an interval."""
        return [
            "\t".join([name, *(f"{number:.6g}" for number in (score.value, *(score.interval or ())))])
            for name, score in self.scores.items()
            if score.value is not None
        ]

    def record(self) -> dict[str, Any]:
        """Return the fields of --json: values and intervals of all scores, then their details."""
        found: dict[str, Any] = {}
        for name, score in self.scores.items():
            own = score.json_name or name
            found[own] = score.value
            if score.interval is not None:
                found[score.json_interval or f"{own}_interval"] = list(score.interval)
        return found | {name: value for score in self.scores.values() for name, value in score.details.items()}


def compute_scores(metrics: Iterable[Metric], inputs: Inputs, *, strict: Collection[str]) -> Report:
    """Compute all metrics.

    A metric in `strict` that is not available raises an error; others are skipped with a warning.
    Errors: UsageError and DataError, which name the metric.
    """
    scores: dict[str, Score] = {}
    warnings: list[str] = []
    for metric in metrics:
        try:
            inputs.require(metric)
            with about(metric.name):
                found = registry.load(FOLDER, metric.name).compute(**inputs.arguments(metric))
        except (UsageError, DataError) as error:
            if metric.name in strict:
                raise
            warnings.append(f"skipped {error}")
            continue
        for name, value in found.items():
            scores[name] = value if isinstance(value, Score) else Score(value=value)
            warnings += scores[name].warnings
    return Report(scores=scores, warnings=tuple(warnings))
