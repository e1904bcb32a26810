"""What `probe` prints: the lines of one test set as they are, those of several as one table with their means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from corecli.base.outcome import Outcome
from corecli.commands._probe_sets import named

if TYPE_CHECKING:
    from corecli.commands._probe_sets import NamedSet, Problem
    from corecli.commands.probe import Config
    from corecli.metrics._scores import Scores


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of a test set, of the classifier and of the k-NN votes by k."""

    problem: Problem
    of: NamedSet
    scores: Scores
    neighbours: dict[int, Scores]
    settings: tuple[Any, ...]

    @property
    def shown(self) -> str:
        """What stands for the test set in a table."""
        return self.of.shown

    @property
    def kind(self) -> str | None:
        """Whether a named test set shows transfer, to its own training set, or shift, from the first one's."""
        if self.of.name is None:
            return None
        return "transfer" if self.of.name == self.problem.task.train.name else "shift"

    def values(self) -> dict[str, float | None]:
        """The scores by name."""
        found = {name: getattr(self.scores, name) for name in ("top1", "top5", "mean_per_class")}
        for k, scores in self.neighbours.items():
            prefix = "knn" if len(self.neighbours) == 1 else f"knn{k}"
            found |= {f"{prefix}_top1": scores.top1, f"{prefix}_top5": scores.top5}
        return found

    def per_class(self) -> dict[str, float]:
        """The accuracy of each class by name."""
        return {self.problem.space.name(number): value for number, value in self.scores.per_class.items()}


def report(config: Config, results: Sequence[Result]) -> Outcome:
    """Lines and records of all test sets."""
    places = {named(text): place for place, text in enumerate(config.test)}
    results = sorted(results, key=lambda result: places[result.of])
    alone = len(results) == 1 and results[0].of.name is None and results[0].problem.task.train.name is None
    lines = [line if alone else f"{r.shown}\t{line}" for r in results for line in _lines(config, r)]
    records = [_record(config, result) for result in results]
    for kind, over in _groups(results).items():
        mean = _mean([result.values() for result in over])
        lines += [f"mean({kind})\t{name}\t{value:.6g}" for name, value in mean.items()]
        records.append({"mean_over": [result.shown for result in over], **mean})
    notes = tuple(_note(r) for r in results if r.scores.num_classes < len(r.problem.space))
    return Outcome(lines=tuple(lines), records=tuple(records), notes=notes)


def _lines(config: Config, result: Result) -> list[str]:
    lines = [f"{name}\t{value:.6g}" for name, value in result.values().items() if value is not None]
    for name, interval in (("seeds", result.scores.seed_interval), ("test", result.scores.test_interval)):
        if interval is not None:
            lines.append(f"top1_interval_{name}\t{interval[0]:.6g}\t{interval[1]:.6g}")
    if config.per_class:
        lines += [f"class {name}\t{value:.6g}" for name, value in result.per_class().items()]
    return lines


def _record(config: Config, result: Result) -> dict[str, Any]:
    task = result.problem.task
    return {
        **({} if result.of.name is None else {"name": result.of.name}),
        **result.values(),
        "per_class": result.per_class(),
        "top1_interval_seeds": result.scores.seed_interval,
        "top1_interval_test": result.scores.test_interval,
        "top1_by_seed": result.scores.top1_by_seed,
        "settings": result.settings,
        "num_train": len(result.problem.subsets[0]),
        "num_test": result.scores.num_test,
        "num_classes": result.scores.num_classes,
        "encoder": config.encoder,
        "layer": config.layer,
        "mode": config.mode,
        "train": task.train.spec,
        "test": result.of.spec,
    }


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The test sets that have a mean: two and more under shift, or of transfer."""
    kinds = {kind: [result for result in results if result.kind == kind] for kind in ("shift", "transfer")}
    return {kind: over for kind, over in kinds.items() if len(over) > 1}


def _mean(scores: Sequence[dict[str, float | None]]) -> dict[str, float]:
    """The mean of every score that all of them have."""
    values = {name: [one[name] for one in scores] for name in scores[0]}
    return {name: sum(found) / len(found) for name, found in values.items() if None not in found}  # type: ignore[arg-type]


def _note(result: Result) -> str:
    num, whole = result.scores.num_classes, len(result.problem.space)
    return f"{result.shown}: scored over the logits of its {num} of {whole} classes"
