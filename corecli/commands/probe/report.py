"""The output of `probe`: lines and JSON records of each test set, means over several, and the confusion matrix."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.files import atomic_write
from corecli.base.outcome import Outcome
from corecli.commands.probe.sets import NamedSet, Task

if TYPE_CHECKING:
    from corecli.commands.probe.problem import ClassSpace

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The scores of a test set.

    confusion: counts of images by true class (row) and predicted class (column), numbered as in `space`; None with
    --labels; predictions: columns with the keys, the classes and the predicted classes of the images; corruptions: top1
    under each corruption, by severity.
    """

    task: Task
    of: NamedSet
    space: ClassSpace
    values: dict[str, float | None]
    per_class: dict[str, float]
    intervals: dict[str, Interval | None]
    by_seed: dict[str, tuple[float, ...]]
    settings: tuple[Any, ...]
    num_train: int
    num_test: int
    num_classes: int
    confusion: list[list[float]] | None
    predictions: dict[str, list[str]] = field(default_factory=dict)
    corruptions: dict[str, list[float]] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """Return "transfer" if a test set has its own training set, "shift" if not, None if it has no name."""
        if self.of.name is None:
            return None
        return "transfer" if self.of.name == self.task.train.name else "shift"


def report(results: Sequence[Result], *, shared: Mapping[str, Any], per_class: bool) -> Outcome:
    """Return the lines and records of test sets.

    shared: fields of every record; per_class: whether the lines have the accuracy of each class.
    """
    alone = len(results) == 1 and results[0].of.name is None and results[0].task.train.name is None
    lines = [line if alone else f"{r.of.shown}\t{line}" for r in results for line in _lines(r, per_class)]
    records = [_record(result, shared) for result in results]
    for kind, over in _groups(results).items():
        mean = _mean([result.values for result in over])
        lines += [f"mean({kind})\t{name}\t{value:.6g}" for name, value in mean.items()]
        records.append({"mean_over": [result.of.shown for result in over], **mean})
    notes = tuple(_note(r) for r in results if r.num_classes < len(r.space))
    return Outcome(lines=tuple(lines), records=tuple(records), notes=notes)


def _lines(result: Result, per_class: bool) -> list[str]:
    lines = [f"{name}\t{value:.6g}" for name, value in result.values.items() if value is not None]
    for name, interval in result.intervals.items():
        if interval is not None:
            lines.append(f"{name}\t{interval[0]:.6g}\t{interval[1]:.6g}")
    lines += [f"corruption {name}\t{_average(found):.6g}" for name, found in result.corruptions.items()]
    if result.corruptions:
        lines.append(f"corruption_mean\t{_corruption_mean(result):.6g}")
    if per_class:
        lines += [f"class {name}\t{value:.6g}" for name, value in result.per_class.items()]
    return lines


def _record(result: Result, shared: Mapping[str, Any]) -> dict[str, Any]:
    corrupted: dict[str, Any] = {}
    if result.corruptions:
        corrupted = {"corruption_mean": _corruption_mean(result), "corruptions": result.corruptions}
    return {
        **({} if result.of.name is None else {"name": result.of.name}),
        **result.values,
        **corrupted,
        "per_class": result.per_class,
        **result.intervals,
        **result.by_seed,
        "settings": result.settings,
        "num_train": result.num_train,
        "num_test": result.num_test,
        "num_classes": result.num_classes,
        **shared,
        "train": result.task.train.spec,
        "test": result.of.spec,
    }


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the kinds with at least two test sets, whose scores are averaged."""
    kinds = {kind: [result for result in results if result.kind == kind] for kind in ("shift", "transfer")}
    return {kind: over for kind, over in kinds.items() if len(over) > 1}


def _mean(scores: Sequence[dict[str, float | None]]) -> dict[str, float]:
    """Return the mean of every score that all test sets have."""
    found = {}
    for name in scores[0]:
        values = [value for one in scores if (value := one.get(name)) is not None]
        if len(values) == len(scores):
            found[name] = _average(values)
    return found


def _corruption_mean(result: Result) -> float:
    return _average([value for found in result.corruptions.values() for value in found])


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _note(result: Result) -> str:
    return f"{result.of.shown}: scored over the logits of its {result.num_classes} of {len(result.space)} classes"


def write_confusion(path: Path, result: Result) -> None:
    """Write CSV with a column for each predicted class and a row for each true class: counts, averaged over seeds."""
    counts, space = result.confusion or [], result.space
    names = [space.name(number) for number in range(len(space))]
    lines: list[list[Any]] = [["true \\ predicted", *names]]
    for number, name in enumerate(names):
        row = counts[number] if number < len(counts) else []
        lines.append([name, *(f"{value:.6g}" for value in row), *[0] * (len(names) - len(row))])
    _write_csv(path, lines)


def write_predictions(path: Path, result: Result) -> None:
    """Write CSV with a row for each image: its key, its class and the predicted classes."""
    _write_csv(path, [list(result.predictions), *zip(*result.predictions.values(), strict=True)])


def _write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))
