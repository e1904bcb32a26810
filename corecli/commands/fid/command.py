"""Check and run `corecli fid`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.errors import CannotCreateError, UsageError
from corecli.base.outcome import Outcome
from corecli.commands.fid.scores import ALL, METRICS, NEED_FEATURES, NEED_INCEPTION, Pair, Score, default_metrics, score
from corecli.commands.fid.sides import Kind, Side, kind_of, read_given, read_table
from corecli.commands.fid.spaces import NUM_RESAMPLES, SCORES, compare_tables
from corecli.commands.parts.inputs import bad_files, check_replaceable, num_workers, open_images

if TYPE_CHECKING:
    from corecli.engine.dist import World
    from corecli.nets.extractor import Extractor

from corecli.commands.fid.options import EVERY, Config


def check(config: Config) -> dict[str, Any]:
    """What would be compared. Errors: as `run`, as far as they show without torch."""
    if not config.samples and config.save_stats is None:
        raise UsageError("nothing to measure", hint="give --samples or --save-stats")
    if config.precision == "bf16":
        raise UsageError("distances are measured in float32", hint="drop --precision bf16")
    check_replaceable(config.save_stats, ("npz",), force=config.force)
    if config.cache is not None and config.cache.exists() and not config.cache.is_dir():
        raise CannotCreateError("exists and is no directory", where=config.cache, hint="name another for --cache")
    if config.bootstrap is not None and not _of_tables(config):
        raise UsageError("--bootstrap is for cka and opd", hint="add --metrics cka,opd")
    kinds: dict[str, Kind] = {spec: kind_of(spec) for spec in (config.reference, *config.samples)}
    for spec, kind in kinds.items():
        _check_input(config, spec, kind)
    _check_metrics(config, kinds)
    if config.extractor is not None and not {"images", "batch"} & set(kinds.values()):
        raise UsageError("--extractor is for images, and there are none", hint="features and statistics have theirs")
    if config.cache is not None and config.extractor is None:
        raise UsageError("--cache is for the features of images, and there are none")
    plan = {"reads": [f"{spec} ({kind})" for spec, kind in kinds.items()]}
    return plan if config.save_stats is None else {**plan, "writes": [str(config.save_stats)]}


def run(config: Config, world: World) -> Outcome:
    """Measure each sample set against the reference. Errors: DataError, UnavailableError, UsageError."""
    from corecli.data.statistics import write_statistics
    from corecli.nets.extractor import load_extractor

    extractor = None
    if config.extractor is not None:
        layer: Any = config.layer
        extractor = load_extractor(config.extractor, layer=layer, resize=config.resize, device=world.device)
    reference, lines = None, []
    if _compares_sets(config) or config.save_stats is not None:
        reference = _measure(config, config.reference, extractor, world)
    if config.save_stats is not None and reference is not None:
        lines.append(str(config.save_stats))
        if world.is_main:
            write_statistics(config.save_stats, reference.statistics())
    records, notes = [], list(reference.notes if reference else ())
    for spec in config.samples:
        scores, facts = [], {}
        if reference is not None and _compares_sets(config):
            samples = _measure(config, spec, extractor, world)
            notes += samples.notes
            if world.is_main:
                scores, facts, warnings = _compare(config, samples, reference, world)
                notes += warnings
        if _of_tables(config) and world.is_main:
            more, about = _compare_tables(config, spec, world)
            scores, facts = [*scores, *more], {**facts, **about}
        told = [found.line() for found in scores if found.value is not None]
        told += [f"{name}\t{facts[name]}" for name in _TOLD if facts.get(name) is not None]
        lines += [f"{spec}\t{line}" if len(config.samples) > 1 else line for line in told]
        record = {name: value for found in scores for name, value in found.record().items()}
        records.append({**record, **facts, "samples": spec, "reference": config.reference})
    return Outcome(lines=tuple(lines), records=tuple(records), notes=tuple(dict.fromkeys(notes)))


_TOLD = ("num_images", "num_samples", "num_reference", "space")


def _check_input(config: Config, spec: str, kind: Kind) -> None:
    if kind != "features" and _of_tables(config):
        reason = f"{' and '.join(_of_tables(config))} compare two feature tables, and this is none"
        raise UsageError(reason, where=spec, hint="write them with corecli extract")
    if kind == "images":
        open_images(spec, config)
        if config.extractor is None:
            raise UsageError("images need --extractor", hint="a file of FID Inception weights, or an encoder")
    elif kind in ("statistics", "batch") and spec != config.reference:
        raise UsageError(f"{spec}: statistics can only be the --reference")


def _check_metrics(config: Config, kinds: dict[str, Kind]) -> None:
    """UsageError for a metric that the kind of an input rules out."""
    for name in config.metrics:
        if name in NEED_FEATURES and kinds[config.reference] == "statistics":
            reason = f"{name} needs features, and {config.reference} holds statistics alone"
            raise UsageError(reason, hint="name its images or a feature table")
        tables = [spec for spec in config.samples if kinds[spec] == "features"]
        if name in NEED_INCEPTION and tables:
            raise UsageError(f"{name} needs images and FID Inception weights, and {tables[0]} is a feature table")


def _compares_sets(config: Config) -> bool:
    """Whether two sets are to be compared in one feature space, rather than two spaces on one set alone."""
    return not config.metrics or any(name not in SCORES for name in config.metrics)


def _of_tables(config: Config) -> tuple[str, ...]:
    """The metrics asked for that compare two feature spaces on one set."""
    return tuple(name for name in config.metrics if name in SCORES)


def _measure(config: Config, spec: str, extractor: Extractor | None, world: World) -> Side:
    kind = kind_of(spec)
    if kind == "features":
        return read_table(spec)
    if kind == "images":
        assert extractor is not None
        return _measure_images(config, spec, extractor, world)
    given = read_given(spec)
    others = set(config.metrics) - {"fd", "fid", "sfid", "is", *SCORES}
    if kind == "statistics" or extractor is None or not others:
        return given
    images = _measure_images(config, spec, extractor, world)
    given.refuse_other_space(images)
    return dataclasses.replace(images, given=given.given, metric=given.metric)


def _measure_images(config: Config, spec: str, extractor: Extractor, world: World) -> Side:
    import torch

    from corecli.commands.fid.images import measure_images

    data = open_images(spec, config)
    found, notes = measure_images(
        data,
        extractor,
        world,
        names=_tensors(config, spec),
        cache=config.cache,
        batch_size=config.batch_size,
        workers=num_workers(config.workers),
        label=spec,
        quiet=config.quiet,
    )
    return Side(
        spec=spec,
        metric=extractor.metric,
        space=extractor.space,
        fingerprint=extractor.fingerprint,
        groups=data.rows.group_ids,
        labels=torch.from_numpy(data.rows.labels),
        class_names=data.class_names,
        notes=(*bad_files(data), *notes),
        features=found.get("features"),
        spatial=found.get("spatial"),
        logits=found.get("logits"),
    )


def _tensors(config: Config, spec: str) -> tuple[str, ...]:
    """What of the network's output the metrics need of a set."""
    asked = set(config.metrics)
    is_classified = spec in config.samples and (not asked or bool(asked & {"is", EVERY}))
    is_spatial = bool(asked & {"sfid", EVERY}) or (spec == config.reference and config.save_stats is not None)
    return ("features", *["logits"] * is_classified, *["spatial"] * is_spatial)


def _compare(
    config: Config, samples: Side, reference: Side, world: World
) -> tuple[list[Score], dict[str, Any], list[str]]:
    """The scores of one comparison, facts about it, and warnings."""
    samples.refuse_other_space(reference)
    asked = {*config.metrics, *(ALL if EVERY in config.metrics else ())}
    wanted = tuple(name for name in METRICS if name in asked and not (name == "fid" and "fd" in asked))
    pair = Pair(
        samples=samples,
        reference=reference,
        wanted=wanted or default_metrics(samples, reference),
        num_splits=config.splits,
        seed=config.seed,
        device=world.device,
    )
    scores = score(pair, strict=("fd", *config.metrics))
    facts = {
        **pair.details,
        "num_samples": samples.num,
        "num_reference": reference.num,
        "space": samples.space,
        "fingerprint": samples.fingerprint,
        "dim": samples.dim,
    }
    return scores, facts, pair.warnings


def _compare_tables(config: Config, spec: str, world: World) -> tuple[list[Score], dict[str, Any]]:
    return compare_tables(
        (Path(config.reference), Path(spec)),
        metrics=config.metrics,
        num_resamples=NUM_RESAMPLES if config.bootstrap is None else config.bootstrap,
        seed=config.seed,
        device=world.device,
        shown=world.is_main and not config.quiet,
    )
