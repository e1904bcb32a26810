"""Measure the distance between two image sets, or between two feature spaces.

The Frechet distance is computed in float64 in the feature space of --extractor, which runs in float32. With the weights
of the FID Inception network it is called fid; in any other encoder's space it is called fd[NAME] and compares only with
itself. Sound only when that encoder was trained on real images alone, is frozen over all rounds, and is not the one
that conditions the generator.

Either side may be an image set or a feature table; the reference also a statistics file (.npz with mu and sigma, such
as ADM's reference batches, whose images serve the metrics that need more than statistics). Images go through the
network once for all metrics; with --cache DIR their features are kept under the hash of every pixel, of the network and
of the preprocessing, so that features of other images are never used.

Output is one line a score, NAME, VALUE and where there is one the 95 % interval, LOW and HIGH, separated by tabs; then
the numbers of images and the feature space. A metric that the inputs cannot give is refused where it was named, and
left out with a note under --metrics all.

fd, or fid: the distance, and _corrected for the number of images by the ten-fold jackknife, with its interval. The
bootstrap is not used: resamples with repeated images are farther from the reference than fresh ones. The corrected
distance of two sets that are hardly apart may be negative.

sfid: the same in the first 7 channels of Inception's mixed_6/conv at all 17 x 17 places, as ADM's evaluator.

is: the Inception score, mean and standard deviation over --splits, from logits without bias, shuffled as torch-fidelity
does. ADM's evaluator does not shuffle and cuts every 5000 images.

kid: the unbiased kernel distance over all pairs of images, with a jackknife interval. kid-subsets: its mean and
standard deviation over 100 subsets of 1000 (or of the smaller set), drawn as torch-fidelity draws them.

precision-recall: with closed balls to the 3rd neighbour; density-coverage: with open balls to the 5th.

fd-infinity: the end of a line through the distances of 15 numbers of samples, from a tenth to all, over 1/N.

copies: mean distance of samples to their nearest real image, of real images to each other, their copy_ratio (well below
1: the generator copies), and shares of samples: copy_fraction (at or below the 1 % quantile among real images),
memorised (thrice as near to one real image as to any other), authenticity (farther from the nearest real image than
that is from its own).

vendi: the effective number of different images, of samples and reference, also of features less their mean. diversity:
the mean cosine distance of two images of a class. per-class: the distance of each class, in --json, and their mean.

cka and opd compare two encoders on the same images, given as two feature tables that are joined by key: 1 minus the
linear CKA, beside its debiased form, and the orthogonal Procrustes distance. Both are 0 for spaces that differ by
rotation, shift and scale alone. Few images make them too small: independent Gaussians of 512 and 256 dimensions are at
cka 0.42, 0.74, 0.92 and opd 0.39, 1.09, 1.53 for 256, 1000 and 4000 images, so compare them at equal num_images;
cka_debiased is near 1 each time. Their intervals are of --bootstrap resamples with repeated images, which are nearer to
each other than fresh ones, so that an interval may lie below its value.

Beside other tools, on the same weights: torch-fidelity resizes and normalises as --resize tf1, pytorch-fid as --resize
torch, clean-fid as --resize clean; the same images differ by per cents between these. With no more images than features
their matrix root of a singular covariance is off by about 1e-4 of the distance, which is exact here; with more images
all agree to 1e-6. torch-fidelity sums its kernel in float32: kid differs by up to 1e-7 absolutely, all of a distance
near 0. Its precision and recall are of VGG16 unless it is told otherwise. ADM's evaluator measures neighbours in
float16, which moves precision and recall by thousandths.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base.config import Preset, option
from corecli.base.errors import CannotCreateError, UsageError
from corecli.base.outcome import Outcome
from corecli.commands import _inputs
from corecli.commands._fid_scores import (
    ALL,
    METRICS,
    NEED_FEATURES,
    NEED_INCEPTION,
    Pair,
    Score,
    default_metrics,
    score,
)
from corecli.commands._fid_sides import Kind, Side, kind_of, read_given, read_table
from corecli.commands._similarity import NUM_RESAMPLES, SCORES, compare_tables

if TYPE_CHECKING:
    from corecli.engine.dist import World
    from corecli.nets.extractor import Extractor

EXAMPLES = (
    (
        "FID and IS against CIFAR-10",
        "--reference torchvision:CIFAR10:train --samples syn --extractor pt_inception-2015-12-05-6726825d.pth",
    ),
    (
        "Everything against ADM's reference batch, with the features kept for next time",
        "--reference VIRTUAL_imagenet256_labeled.npz --samples syn --extractor inception.pth --metrics all --cache DIR",
    ),
    ("In the space of an encoder", "--reference DIR --samples syn --extractor judge.safetensors --json"),
    ("How alike two encoders see one set", "--reference z1.safetensors --samples z2.safetensors --metrics cka,opd"),
    ("Keep the reference for later", "--reference DIR --extractor judge.safetensors --save-stats real.npz"),
)
PRESETS: dict[str, Preset] = {}
EVERY = "all"


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli fid`."""

    reference: str = option(help="real images, their features or their statistics", role="input", metavar="SET|FILE")
    samples: tuple[str, ...] = option(
        (), help="images to judge, or their features; repeatable, one result each", role="input", metavar="SET|FILE"
    )
    metrics: tuple[str, ...] = option(
        (),
        choices=(EVERY, *METRICS, *SCORES),
        help="what to measure, repeatable or with commas; if not given fd, and is and copies where they can be",
    )
    extractor: str | None = option(
        None,
        help="network to measure with: FID Inception weights, an encoder, timm:NAME",
        role="input",
        metavar="FILE|NAME",
    )
    layer: Literal["backbone", "projector"] = option("backbone", help="features of an encoder")
    resize: Literal["tf1", "torch", "clean", "none"] = option(
        "tf1",
        help="how Inception's input is resized: as TensorFlow and ADM, pytorch-fid, clean-fid, or not at all",
    )
    save_stats: Path | None = option(None, help="write the reference's statistics", role="output", metavar="FILE.npz")
    cache: Path | None = option(
        None, help="keep features of images here, and use those kept", role="runtime", metavar="DIR"
    )
    splits: int = option(10, help="parts of the samples whose Inception scores are averaged", minimum=1)
    bootstrap: int | None = option(
        None, help=f"resamples behind the intervals of cka and opd, {NUM_RESAMPLES} if not given; 0: none", minimum=0
    )
    batch_size: int = option(128, help="images per forward pass", role="runtime", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """What would be compared. Errors: as `run`, as far as they show without torch."""
    if not config.samples and config.save_stats is None:
        raise UsageError("nothing to measure", hint="give --samples or --save-stats")
    if config.precision == "bf16":
        raise UsageError("distances are measured in float32", hint="drop --precision bf16")
    _inputs.check_replaceable(config.save_stats, ("npz",), force=config.force)
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
        _inputs.open_images(spec, config)
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

    from corecli.commands._fid_images import measure_images

    data = _inputs.open_images(spec, config)
    found, notes = measure_images(
        data,
        extractor,
        world,
        names=_tensors(config, spec),
        cache=config.cache,
        batch_size=config.batch_size,
        workers=_inputs.num_workers(config.workers),
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
        notes=(*_inputs.bad_files(data), *notes),
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
