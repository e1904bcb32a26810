"""The inputs of metrics: features and statistics of two sets, or two feature tables of the same images.

`metrics.parts.metric.INPUTS` describes them. What several metrics need is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.errors import DataError, UsageError
from corecli.commands.fid.sides import Side
from corecli.data.joins import find
from corecli.data.rows import as_array
from corecli.data.strings import Strings, pack
from corecli.metrics.parts.metric import PAIRS, Metric, default_metrics

if TYPE_CHECKING:
    import torch

    from corecli.data.features import FeatureTable
    from corecli.metrics.parts.similarity import Similarities
    from corecli.metrics.parts.survey import Survey


@dataclass(frozen=True, kw_only=True, eq=False)
class SetInputs:
    """Samples and a reference in one feature space; metrics: those to compute, () for the default metrics."""

    samples: Side
    reference: Side
    metrics: tuple[Metric, ...]
    num_splits: int
    seed: int
    device: torch.device

    @cached_property
    def wanted(self) -> tuple[Metric, ...]:
        """The metrics to compute: the requested ones, or the default metrics that are available."""
        return self.metrics or tuple(
            metric
            for metric in default_metrics()
            if self.obstacle(metric) is None and self._counts()[0] >= (metric.default_from or 0)
        )

    def require(self, metric: Metric) -> None:
        """Raise UsageError if an input is missing, DataError if a set has too few images."""
        obstacle = self.obstacle(metric)
        if obstacle is not None:
            raise UsageError(obstacle, where=metric.name)
        counts = self._counts()
        if min(counts) < metric.fewest:
            reason = f"{' samples and '.join(map(str, counts))} reference images are too few"
            raise DataError(reason, where=metric.name, hint=f"use at least {metric.fewest} of each")

    def obstacle(self, metric: Metric) -> str | None:
        """Return what the metric needs but one of the sets does not have, or None."""
        if metric.space == "inception" and self.samples.metric != "fid":
            space = self.samples.space or self.samples.spec
            return f"needs FID Inception weights; in the space of {space} the distance is called fd"
        found = (self._missing(name) for name in metric.needs)
        return next((text for text in found if text is not None), None)

    def arguments(self, metric: Metric) -> dict[str, Any]:
        """Return what the metric needs, and what it uses where that is available."""
        optional = {name: None if self._missing(name) else SOURCES[name](self) for name in metric.uses}
        return {name: SOURCES[name](self) for name in metric.needs} | optional

    @cached_property
    def survey(self) -> Survey:
        """All pairs of images, visited once for all metrics that need them."""
        import torch

        from corecli.metrics.parts.survey import survey

        counts = min(self._counts())
        parts: Any = {name for m in self.wanted if m.fewest <= counts for name in m.needs if name in PAIRS}
        rows = torch.from_numpy(self.samples.groups), torch.from_numpy(self.reference.groups)
        assert self.samples.features is not None
        assert self.reference.features is not None
        features = self.samples.features.to(self.device), self.reference.features.to(self.device)
        return survey(*features, parts, rows=rows)

    def _missing(self, name: str) -> str | None:
        return _OBSTACLES[name](self.samples, self.reference) if name in _OBSTACLES else None

    def _counts(self) -> list[int]:
        """Return the numbers of samples and of reference images whose features are known."""
        return [len(side.features) for side in (self.samples, self.reference) if side.features is not None]


SOURCES: dict[str, Callable[[SetInputs], Any]] = {
    "samples": lambda sets: sets.samples.features,
    "reference": lambda sets: sets.reference.features,
    "sample_moments": lambda sets: sets.samples.moments,
    "reference_moments": lambda sets: sets.reference.moments,
    "sample_spatial": lambda sets: sets.samples.spatial_moments,
    "reference_spatial": lambda sets: sets.reference.spatial_moments,
    "logits": lambda sets: sets.samples.logits,
    "sample_labels": lambda sets: sets.samples.labels,
    "reference_labels": lambda sets: sets.reference.labels,
    "sample_classes": lambda sets: sets.samples.class_names,
    "reference_classes": lambda sets: sets.reference.class_names,
    "nearest": lambda sets: sets.survey.nearest,
    "balls": lambda sets: sets.survey.balls,
    "kernel": lambda sets: sets.survey.kernel,
    "distance_name": lambda sets: sets.samples.metric,
    "num_splits": lambda sets: sets.num_splits,
    "seed": lambda sets: sets.seed,
    "device": lambda sets: sets.device,
}


def _no_features(_: Side, reference: Side) -> str | None:
    if reference.features is None:
        return f"needs features, and {reference.spec} has only statistics"
    return None


def _no_logits(samples: Side, _: Side) -> str | None:
    return None if samples.logits is not None else f"needs FID Inception weights and the images of {samples.spec}"


def _no_spatial(*sides: Side) -> str | None:
    for side in sides:
        if not side.has_spatial():
            what = "mu_s and sigma_s in" if side.given is not None else "FID Inception weights and the images of"
            return f"needs {what} {side.spec}"
    return None


def _no_labels(side: Side) -> str | None:
    return None if side.has_labels else f"needs labels, and {side.spec} has images without labels"


Obstacle = Callable[[Side, Side], "str | None"]
_OBSTACLES: dict[str, Obstacle] = {
    **dict.fromkeys(("reference", "reference_classes", *PAIRS), _no_features),
    "logits": _no_logits,
    **dict.fromkeys(("sample_spatial", "reference_spatial"), _no_spatial),
    "sample_labels": lambda samples, _: _no_labels(samples),
    "reference_labels": lambda _, reference: _no_labels(reference),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class TableInputs:
    """Two feature tables of the same images; num_resamples: for bootstrap intervals; shown: whether progress is shown.

    Errors: DataError if the images differ, naming one.
    """

    paths: tuple[Path, Path]
    num_resamples: int
    seed: int
    device: torch.device
    shown: bool

    def require(self, metric: Metric) -> None:
        """Raise DataError if the tables have too few images."""
        if len(self._tables[0]) < metric.fewest:
            reason = f"{len(self._tables[0])} images are too few"
            raise DataError(reason, where=metric.name, hint=f"use at least {metric.fewest}")

    def arguments(self, metric: Metric) -> dict[str, Any]:
        """Return the inputs of the metric."""
        return {name: getattr(self, name) for name in (*metric.needs, *metric.uses)}

    def facts(self) -> dict[str, Any]:
        """Return the further fields of --json."""
        dims = [table.features.shape[1] for table in self._tables]
        return {"num_images": len(self._tables[0]), "dims": dims, "num_resamples": self.num_resamples}

    @cached_property
    def first(self) -> torch.Tensor:
        return self._tables[0].features.to(self.device)

    @cached_property
    def second(self) -> torch.Tensor:
        first, second = self._tables
        return second.lookup(first.keys).to(self.device)

    @cached_property
    def similarities(self) -> Similarities:
        from corecli.engine.progress import Progress
        from corecli.metrics.parts.similarity import Similarities, bootstrap, similarity

        value, resamples, num = similarity(self.first, self.second), [], self.num_resamples
        with Progress(f"fid {self.paths[1]}: resamples", total=num, shown=self.shown and num > 0) as progress:
            for resample in bootstrap(self.first, self.second, num_resamples=num, seed=self.seed):
                resamples.append(resample)
                progress.advance()
        return Similarities(value=value, resamples=resamples)

    @cached_property
    def _tables(self) -> tuple[FeatureTable, FeatureTable]:
        from corecli.data.features import load_features

        first, second = (load_features(path) for path in self.paths)
        unpaired = _only_in_one(pack(first.keys), pack(second.keys))
        if unpaired:
            common = (len(first) + len(second) - len(unpaired)) // 2
            reason = f"only {common} of {len(second)} images are among the {len(first)} of {self.paths[0]}"
            hint = f"{min(unpaired)!r} is in only one of them; extract both from the same image set"
            raise DataError(reason, where=self.paths[1], hint=hint)
        return first, second


def _only_in_one(first: Strings, second: Strings) -> list[str]:
    pairs = ((first, second), (second, first))
    return [key for a, b in pairs for key in a.take(np.flatnonzero(as_array(find(a, b)) < 0))]
