"""Check and run `corecli fid`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.errors import CannotCreateError, UsageError
from corecli.base.outcome import Outcome
from corecli.commands.fid.images import measure_side
from corecli.commands.fid.inputs import SetInputs, TableInputs
from corecli.commands.fid.options import ALL, NUM_RESAMPLES, Config
from corecli.commands.fid.scores import Report, compute_scores
from corecli.commands.fid.sides import Kind, Side, kind_of, read_statistics_file, read_table
from corecli.commands.parts.inputs import check_replaceable, num_workers, open_images
from corecli.metrics.parts.metric import (
    LOGITS,
    REFERENCE_FEATURES,
    SPATIAL,
    Metric,
    default_metrics,
    metrics,
    requested,
)

if TYPE_CHECKING:
    from corecli.engine.dist import World
    from corecli.nets.extractor import Extractor

_PRINTED_FACTS = ("num_images", "num_samples", "num_reference", "space")


def check(config: Config) -> dict[str, Any]:
    """Return what would be compared. Errors: as `run`, as far as they can be found without torch."""
    if not config.samples and config.save_stats is None:
        raise UsageError("nothing to measure", hint="give --samples or --save-stats")
    if config.precision == "bf16":
        raise UsageError("distances are measured in float32", hint="drop --precision bf16")
    check_replaceable(config.save_stats, ("npz",), force=config.force)
    if config.cache is not None and config.cache.exists() and not config.cache.is_dir():
        raise CannotCreateError("exists and is not a directory", where=config.cache, hint="choose another --cache")
    kinds: dict[str, Kind] = {spec: kind_of(spec) for spec in (config.reference, *config.samples)}
    for spec, kind in kinds.items():
        _check_input(config, spec, kind)
    _check_metrics(config, kinds)
    _check_unused_options(config, kinds)
    plan = {"reads": [f"{spec} ({kind})" for spec, kind in kinds.items()]}
    return plan if config.save_stats is None else {**plan, "writes": [str(config.save_stats)]}


def run(config: Config, world: World) -> Outcome:
    """Compare each sample set with the reference. Errors: DataError, UnavailableError, UsageError."""
    extractor = _load_extractor(config, world)
    reference = None
    if _compares_sets(config) or config.save_stats is not None:
        reference = _measure(config, config.reference, extractor, world)
    lines, records, notes = [], [], list(reference.notes if reference else ())
    if config.save_stats is not None and reference is not None:
        lines.append(_save_statistics(config.save_stats, reference, world))
    for spec in config.samples:
        report, facts = Report(), {}
        if reference is not None and _compares_sets(config):
            samples = _measure(config, spec, extractor, world)
            notes += samples.notes
            report, facts = _compare_sets(config, samples, reference, world)
        if _table_metrics(config) and world.is_main:
            of_tables, more = _compare_tables(config, spec, world)
            report, facts = report.joined(of_tables), facts | more
        found = report.lines() + [f"{name}\t{facts[name]}" for name in _PRINTED_FACTS if facts.get(name) is not None]
        lines += [f"{spec}\t{line}" if len(config.samples) > 1 else line for line in found]
        records.append({**report.record(), **facts, "samples": spec, "reference": config.reference})
        notes += report.warnings
    return Outcome(lines=tuple(lines), records=tuple(records), notes=tuple(dict.fromkeys(notes)))


def _check_input(config: Config, spec: str, kind: Kind) -> None:
    if kind != "features" and _table_metrics(config):
        names = ",".join(metric.name for metric in _table_metrics(config))
        reason = f"not a feature table, which --metrics {names} requires"
        raise UsageError(reason, where=spec, hint="write one with corecli extract")
    if kind == "images":
        open_images(spec, config)
        if config.extractor is None:
            raise UsageError("images need --extractor", hint="a file with FID Inception weights, or an encoder")
    elif kind in ("statistics", "batch") and spec != config.reference:
        raise UsageError("statistics can only be the --reference", where=spec)


def _check_metrics(config: Config, kinds: dict[str, Kind]) -> None:
    """Raise UsageError for a requested metric that cannot be computed from these kinds of inputs."""
    tables = [spec for spec in config.samples if kinds[spec] == "features"]
    for metric in (metrics()[name] for name in config.metrics if name != ALL):
        if metric.needs_features and kinds[config.reference] == "statistics":
            reason = f"needs features, and {config.reference} has only statistics"
            raise UsageError(reason, where=metric.name, hint="give its images or a feature table")
        if metric.needs_inception and tables:
            reason = f"needs images and FID Inception weights, and {tables[0]} is a feature table"
            raise UsageError(reason, where=metric.name)


def _check_unused_options(config: Config, kinds: dict[str, Kind]) -> None:
    if config.bootstrap is not None and not any(metric.reads("similarities") for metric in _requested(config)):
        names = [name for name, metric in metrics().items() if metric.reads("similarities")]
        raise UsageError(f"--bootstrap is for {' and '.join(names)}", hint=f"add --metrics {','.join(names)}")
    if config.extractor is not None and not {"images", "batch"} & set(kinds.values()):
        raise UsageError("--extractor is for images, and there are none", hint="drop --extractor")
    if config.cache is not None and config.extractor is None:
        raise UsageError("--cache is for features of images, and there are none", hint="drop --cache")


def _requested(config: Config) -> tuple[Metric, ...]:
    return requested(config.metrics, every=ALL)


def _set_metrics(config: Config) -> tuple[Metric, ...]:
    """Return the requested metrics that compare two sets in one feature space."""
    return tuple(metric for metric in _requested(config) if not metric.compares_tables)


def _table_metrics(config: Config) -> tuple[Metric, ...]:
    """Return the requested metrics that compare two feature spaces on the same images."""
    return tuple(metric for metric in _requested(config) if metric.compares_tables)


def _compares_sets(config: Config) -> bool:
    return not config.metrics or bool(_set_metrics(config))


def _load_extractor(config: Config, world: World) -> Extractor | None:
    if config.extractor is None:
        return None
    from corecli.nets.extractor import load_extractor

    return load_extractor(config.extractor, layer=config.layer, resize=config.resize, device=world.device)


def _save_statistics(path: Path, reference: Side, world: World) -> str:
    if world.is_main:
        from corecli.data.statistics import write_statistics

        write_statistics(path, reference.statistics())
    return str(path)


def _measure(config: Config, spec: str, extractor: Extractor | None, world: World) -> Side:
    """Return one side: read it if it is a feature table or statistics, else put its images through the network."""
    kind = kind_of(spec)
    if kind == "features":
        return read_table(spec)
    given = None if kind == "images" else read_statistics_file(spec)
    needs_images = any(metric.reads(*REFERENCE_FEATURES) for metric in _set_metrics(config))
    if given is not None and (kind == "statistics" or extractor is None or not needs_images):
        return given
    assert extractor is not None
    images = measure_side(
        open_images(spec, config),
        extractor,
        world,
        spec=spec,
        names=_tensors(config, spec),
        cache=config.cache,
        batch_size=config.batch_size,
        workers=num_workers(config.workers),
        quiet=config.quiet,
    )
    if given is None:
        return images
    given.check_same_space(images)
    return dataclasses.replace(images, given=given.given, metric=given.metric)


def _tensors(config: Config, spec: str) -> tuple[str, ...]:
    """Return the names of the extractor's tensors that are needed for a set."""
    wanted = _set_metrics(config) or default_metrics()
    reads_logits = spec in config.samples and any(metric.reads(*LOGITS) for metric in wanted)
    reads_spatial = any(metric.reads(*SPATIAL) for metric in wanted)
    saves_spatial = spec == config.reference and config.save_stats is not None
    return ("features", *["logits"] * reads_logits, *["spatial"] * (reads_spatial or saves_spatial))


def _compare_sets(config: Config, samples: Side, reference: Side, world: World) -> tuple[Report, dict[str, Any]]:
    """Return the scores of one comparison and facts about it; nothing on other ranks than 0."""
    if not world.is_main:
        return Report(), {}
    samples.check_same_space(reference)
    inputs = SetInputs(
        samples=samples,
        reference=reference,
        metrics=_set_metrics(config),
        num_splits=config.splits,
        seed=config.seed,
        device=world.device,
    )
    report = compute_scores(inputs.wanted, inputs, strict=("fd", *config.metrics))
    facts = {
        "num_samples": samples.num,
        "num_reference": reference.num,
        "space": samples.space,
        "fingerprint": samples.fingerprint,
        "dim": samples.dim,
    }
    return report, facts


def _compare_tables(config: Config, spec: str, world: World) -> tuple[Report, dict[str, Any]]:
    """Return the scores of two feature tables and facts about them."""
    inputs = TableInputs(
        paths=(Path(config.reference), Path(spec)),
        num_resamples=NUM_RESAMPLES if config.bootstrap is None else config.bootstrap,
        seed=config.seed,
        device=world.device,
        shown=not config.quiet,
    )
    report = compute_scores(_table_metrics(config), inputs, strict=config.metrics)
    return report, inputs.facts()
