"""The metrics of `corecli fid` on two sides: what each needs of them, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from corecli.base.errors import DataError, UsageError
from corecli.commands.fid.sides import Side

if TYPE_CHECKING:
    import torch

    from corecli.metrics.parts.survey import Part, Survey

Interval = tuple[float, float]
T = TypeVar("T")

_FEWEST = 6  # images a side, for balls that reach to the fifth neighbor


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number with its 95 % interval, where it has one; `field` is its name in --json, `name` if not given."""

    name: str
    value: float | None
    interval: Interval | None = None
    field: str | None = None

    def line(self) -> str:
        """`name<TAB>value`, or `name<TAB>value<TAB>low<TAB>high`."""
        return "\t".join([self.name, *(f"{number:.6g}" for number in (self.value, *(self.interval or ())))])

    def record(self) -> dict[str, Any]:
        """The number, and the interval beside it."""
        name = self.field or self.name
        beside = "interval" if name == "corrected" else f"{name}_interval"
        return {name: self.value, **({beside: list(self.interval)} if self.interval else {})}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A sample side and the reference, what has been asked of them, and what several metrics share."""

    samples: Side
    reference: Side
    wanted: tuple[str, ...]
    num_splits: int
    seed: int
    device: torch.device
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def survey(self) -> Survey:
        """All pairs of images, visited once for all the metrics that need them."""
        import torch

        from corecli.metrics.parts.survey import survey

        parts: set[Part] = {_PARTS[name] for name in self.wanted if name in _PARTS}
        if min(map(len, self.features())) < _FEWEST:
            parts &= {"nearest"}
        rows = torch.from_numpy(self.samples.groups), torch.from_numpy(self.reference.groups)
        return survey(*self.features(), parts, rows=rows)

    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the samples and the reference, on the device."""
        assert self.samples.features is not None
        assert self.reference.features is not None
        return self.samples.features.to(self.device), self.reference.features.to(self.device)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is computed, and what it needs: for each of `needs` why a pair has not got it, or None."""

    compute: Callable[[Pair], Iterator[Score]]
    needs: tuple[Callable[[Side, Side], str | None], ...] = ()


def score(pair: Pair, *, strict: Collection[str]) -> list[Score]:
    """The scores of all wanted metrics.

    What an input cannot give is an error for the metrics in `strict`; others are left out, with a warning.
    Errors: UsageError naming the metric and the input; DataError.
    """
    scores: list[Score] = []
    for name in pair.wanted:
        try:
            obstacle = _obstacle(name, pair.samples, pair.reference)
            if obstacle is not None:
                raise UsageError(f"{name} {obstacle}")
            scores += METRICS[name].compute(pair)
        except UsageError as error:
            if name in strict:
                raise
            pair.warnings.append(f"left out: {error}")
        except DataError as error:
            if name in strict:
                raise
            pair.warnings.append(f"left out: {name}: {error}")
    return scores


def default_metrics(samples: Side, reference: Side) -> tuple[str, ...]:
    """What is told where nothing was asked for: the distance, and of the rest what costs next to nothing to have."""
    possible = [name for name in ("fd", "is", "copies") if _obstacle(name, samples, reference) is None]
    too_few = "is" in possible and samples.logits is not None and len(samples.logits) < 10
    return tuple(name for name in possible if not (name == "is" and too_few))


def _obstacle(name: str, samples: Side, reference: Side) -> str | None:
    return next((why for need in METRICS[name].needs if (why := need(samples, reference)) is not None), None)


def _needs_features(_: Side, reference: Side) -> str | None:
    if reference.features is None:
        return f"needs features, and {reference.spec} holds statistics alone"
    return None


def _needs_logits(samples: Side, _: Side) -> str | None:
    return None if samples.logits is not None else f"needs images of {samples.spec} and FID Inception weights"


def _needs_inception(samples: Side, _: Side) -> str | None:
    if samples.metric != "fid":
        return f"is of FID Inception weights alone; in the space of {samples.space or samples.spec} it is called fd"
    return None


def _needs_spatial(samples: Side, reference: Side) -> str | None:
    for side in (samples, reference):
        if not side.has_spatial():
            what = "mu_s and sigma_s of" if side.given is not None else "FID Inception weights and images of"
            return f"needs {what} {side.spec}"
    return None


def _needs_labels(samples: Side, _: Side) -> str | None:
    return None if samples.has_labels else f"needs labels, and {samples.spec} has images without"


def _needs_both_labels(samples: Side, reference: Side) -> str | None:
    return _needs_labels(samples, reference) or _needs_labels(reference, reference)


def _frechet(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.frechet import Moments, compare

    name, samples = pair.samples.metric, pair.samples.pooled
    assert isinstance(samples, Moments)
    found = compare(samples, pair.reference.pooled)
    pair.warnings.extend(found.warnings)
    pair.details["metric"] = name
    yield Score(name=name, value=found.value, field="value")
    if found.corrected is None:
        pair.details.update(corrected=None, standard_error=None, interval=None)
        return
    yield Score(name=f"{name}_corrected", value=found.corrected, interval=found.interval, field="corrected")
    pair.details["standard_error"] = found.standard_error


def _spatial_frechet(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.frechet import Moments, compare

    samples = pair.samples.pooled_spatial
    assert isinstance(samples, Moments)
    found = compare(samples, pair.reference.pooled_spatial)
    yield Score(name="sfid", value=found.value)
    if found.corrected is not None:
        yield Score(name="sfid_corrected", value=found.corrected, interval=found.interval)


def _inception_score(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.inception_score import inception_score

    assert pair.samples.logits is not None
    found = inception_score(pair.samples.logits, num_splits=pair.num_splits)
    yield Score(name="is", value=found.mean)
    yield Score(name="is_std", value=found.std)


def _kid(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.kid import kid

    found = kid(_enough(pair, pair.survey.kernel))
    yield Score(name="kid", value=found.value, interval=found.interval)


def _kid_subsets(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.kid import kid_of_subsets

    mean, std = kid_of_subsets(*pair.features())
    yield Score(name="kid_subsets", value=mean)
    yield Score(name="kid_subsets_std", value=std)


def _precision_recall(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.precision_recall import precision_recall

    found = precision_recall(_enough(pair, pair.survey.balls))
    yield Score(name="precision", value=found.precision)
    yield Score(name="recall", value=found.recall)


def _density_coverage(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.density_coverage import density_coverage

    found = density_coverage(_enough(pair, pair.survey.balls))
    yield Score(name="density", value=found.density)
    yield Score(name="coverage", value=found.coverage)


def _fd_infinity(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.fd_infinity import fd_infinity
    from corecli.metrics.frechet import Gaussian

    assert pair.samples.features is not None
    reference = pair.reference.pooled
    fixed = reference if isinstance(reference, Gaussian) else reference.gaussian()
    yield Score(name="fd_infinity", value=fd_infinity(pair.samples.features, fixed, seed=pair.seed))


def _copies(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.copies import copy_check

    found = copy_check(*pair.features(), surveyed=pair.survey)
    yield Score(name="nearest_real", value=found.mean_to_real)
    yield Score(name="real_nearest_real", value=found.mean_among_real)
    yield Score(name="copy_ratio", value=found.ratio)
    yield Score(name="copy_fraction", value=found.fraction)
    yield Score(name="memorised", value=found.memorised)
    yield Score(name="authenticity", value=found.authenticity)


def _vendi(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.vendi import vendi

    for name, side in (("vendi", pair.samples), ("reference_vendi", pair.reference)):
        if side.features is not None:
            yield Score(name=name, value=vendi(side.features))
            yield Score(name=f"{name}_centered", value=vendi(side.features, centered=True))


def _diversity(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.diversity import diversity

    for name, side in (("diversity", pair.samples), ("reference_diversity", pair.reference)):
        if side.features is not None and side.has_labels and side.labels is not None:
            yield Score(name=name, value=diversity(side.features, side.labels, where=side.spec))


def _per_class(pair: Pair) -> Iterator[Score]:
    from corecli.metrics.frechet_per_class import frechet_per_class

    names, labels = _common_labels(pair.samples, pair.reference)
    assert pair.samples.features is not None
    assert pair.reference.features is not None
    found = frechet_per_class(pair.samples.features, labels[0], pair.reference.features, labels[1])
    yield Score(name="fd_per_class", value=sum(found.values()) / len(found))
    pair.details["per_class"] = {names.get(label, str(label)): value for label, value in found.items()}


def _enough(pair: Pair, part: T | None) -> T:
    """A part of the survey, or DataError where there are too few images for it."""
    if part is None:
        samples, reference = map(len, pair.features())
        raise DataError(f"{samples} samples and {reference} reference images: at least {_FEWEST} of each are needed")
    return part


def _common_labels(samples: Side, reference: Side) -> tuple[dict[int, str], tuple[torch.Tensor, torch.Tensor]]:
    """Labels that mean the same class on both sides: by name where both name them, else by number."""
    import torch

    assert samples.labels is not None
    assert reference.labels is not None
    ours, theirs = list(samples.class_names), list(reference.class_names)
    names = dict(enumerate(theirs or ours))
    if not (ours and theirs) or ours == theirs:
        return names, (samples.labels, reference.labels)
    number = {name: label for label, name in enumerate(theirs)}
    translated = torch.tensor([number.get(name, len(theirs) + label) for label, name in enumerate(ours)])
    return names, (translated[samples.labels], reference.labels)


_PARTS: dict[str, Part] = {
    "kid": "kernel",
    "precision-recall": "balls",
    "density-coverage": "balls",
    "copies": "nearest",
}
METRICS: dict[str, Metric] = {
    "fd": Metric(compute=_frechet),
    "fid": Metric(compute=_frechet, needs=(_needs_inception,)),
    "sfid": Metric(compute=_spatial_frechet, needs=(_needs_spatial,)),
    "is": Metric(compute=_inception_score, needs=(_needs_logits,)),
    "kid": Metric(compute=_kid, needs=(_needs_features,)),
    "kid-subsets": Metric(compute=_kid_subsets, needs=(_needs_features,)),
    "precision-recall": Metric(compute=_precision_recall, needs=(_needs_features,)),
    "density-coverage": Metric(compute=_density_coverage, needs=(_needs_features,)),
    "fd-infinity": Metric(compute=_fd_infinity),
    "copies": Metric(compute=_copies, needs=(_needs_features,)),
    "vendi": Metric(compute=_vendi),
    "diversity": Metric(compute=_diversity, needs=(_needs_labels,)),
    "per-class": Metric(compute=_per_class, needs=(_needs_features, _needs_both_labels)),
}
NEED_FEATURES = tuple(name for name, metric in METRICS.items() if _needs_features in metric.needs)
NEED_INCEPTION = tuple(
    name for name, m in METRICS.items() if {_needs_inception, _needs_logits, _needs_spatial} & set(m.needs)
)
ALL = tuple(name for name in METRICS if name != "fid")  # which is what fd is called in one space
