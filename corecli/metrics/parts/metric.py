"""What the file of a metric declares and what its function reports.

Each file in `metrics/` is one metric of `corecli fid`; the file `toy_metric.py` adds `--metrics toy-metric`. The first
line of its docstring is its title in the man page. It holds

`NEEDS`: names from `INPUTS`, which are the keyword arguments of `compute`. The metric is not available without them.
`SCORES`: for each score it reports, whether "lower" or "higher" is better, or None if neither is.
`compute(*, ...)`: the function from these inputs to a dictionary of numbers or `Score`s, in the order of the output.

and, where they apply,

`USES`: further names from `INPUTS`; an input that is not available is passed as None.
`PLACE`: its position in the output (default: last).
`DEFAULT_FROM`: the number of samples from which it is computed by default (default: never).
`FEWEST`: the smallest number of images in each set (default 1).
`SPACE`: "inception" if it is defined in the space of the FID Inception network alone.
`ALIAS_OF`: the metric whose numbers it repeats; `all` leaves an alias out.

The constants are literals and are read without importing the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from corecli.base import registry

FOLDER = "metrics"
INPUTS: Mapping[str, str] = {
    "samples": "features of the samples, float [N, D], on the CPU",
    "reference": "features of the reference, float [M, D], on the CPU",
    "sample_moments": "`Moments` of the samples' features",
    "reference_moments": "`Moments` of the reference's features, or the `Gaussian` of a statistics file",
    "sample_spatial": "`Moments` of the samples' spatial features",
    "reference_spatial": "`Moments` or `Gaussian` of the reference's spatial features",
    "logits": "Inception logits of the samples without bias, float [N, 1008]",
    "sample_labels": "int64 [N]",
    "reference_labels": "int64 [M]",
    "sample_classes": "class names in the order of labels, or ()",
    "reference_classes": "class names in the order of labels, or ()",
    "nearest": "`Nearest`: the nearest neighbors of both sets in the reference",
    "balls": "`Balls`: which rows lie in the nearest-neighbor balls of the other set",
    "kernel": "`KernelSums`: sums of the KID kernel over all pairs",
    "first": "features of the reference table, float [N, P], on the device",
    "second": "features of the sample table for the same images, float [N, Q], on the device",
    "similarities": "`Similarities` of the two tables, with bootstrap resamples",
    "distance_name": "name of a Frechet distance in this space: `fid` or `fd[NAME]`",
    "num_splits": "the option --splits",
    "seed": "the option --seed",
    "device": "the device for heavy computation",
}
TABLES = frozenset({"first", "second", "similarities"})
PAIRS = frozenset({"nearest", "balls", "kernel"})
REFERENCE_FEATURES = frozenset({"reference", "reference_labels", "reference_classes", *PAIRS})
LOGITS, SPATIAL = frozenset({"logits"}), frozenset({"sample_spatial", "reference_spatial"})
_LAST = 99  # the place of a metric that declares none


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number with its 95% interval, if it has one.

    json_name, json_interval: their fields of --json (default: the score's name, and that name with `_interval`);
    details: further fields of --json; warnings: notes for stderr. A score without a value is not printed.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    json_name: str | None = None
    json_interval: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Scores = Mapping[str, "float | Score"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The constants of a metric's file (see the module)."""

    name: str
    title: str
    needs: tuple[str, ...]
    scores: Mapping[str, str | None]
    uses: tuple[str, ...] = ()
    place: int = _LAST
    default_from: int | None = None
    fewest: int = 1
    space: str | None = None
    alias_of: str | None = None

    @property
    def compares_tables(self) -> bool:
        """Whether it compares two feature spaces on the same images, rather than two sets in one feature space."""
        return not TABLES.isdisjoint(self.needs)

    @property
    def needs_features(self) -> bool:
        """Whether the statistics of the reference are not enough."""
        return not REFERENCE_FEATURES.isdisjoint(self.needs)

    @property
    def needs_inception(self) -> bool:
        """Whether the samples must be images that go through the FID Inception network."""
        return self.space == "inception" or not (LOGITS | SPATIAL).isdisjoint(self.needs)

    def reads(self, *inputs: str) -> bool:
        """Whether it takes one of these inputs, if only where it is available."""
        return not {*self.needs, *self.uses}.isdisjoint(inputs)


@cache
def metrics() -> Mapping[str, Metric]:
    """Return all metrics by name, in the order of the output."""
    found = (_declared(name) for name in registry.choices(FOLDER))
    return {metric.name: metric for metric in sorted(found, key=lambda m: (m.compares_tables, m.place, m.name))}


def requested(names: Iterable[str], *, every: str) -> tuple[Metric, ...]:
    """Return the metrics with these names in the order of the output, without aliases of each other.

    The name `every` stands for all metrics that compare two sets.
    """
    names = set(names)
    if every in names:
        names |= {m.name for m in metrics().values() if not m.compares_tables and m.alias_of is None}
    return tuple(m for m in metrics().values() if m.name in names and m.alias_of not in names)


def default_metrics() -> tuple[Metric, ...]:
    """Return the metrics that are computed by default, where the inputs allow it."""
    return tuple(metric for metric in metrics().values() if metric.default_from is not None)


def _declared(name: str) -> Metric:
    constants = registry.constants(FOLDER, name)
    return Metric(
        name=name,
        title=constants["title"].rstrip("."),
        needs=constants["NEEDS"],
        scores=constants["SCORES"],
        uses=constants.get("USES", ()),
        place=constants.get("PLACE", _LAST),
        default_from=constants.get("DEFAULT_FROM"),
        fewest=constants.get("FEWEST", 1),
        space=constants.get("SPACE"),
        alias_of=constants.get("ALIAS_OF"),
    )
