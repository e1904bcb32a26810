"""Measure the distance between two image sets, or between two feature spaces.

The Frechet distance is computed in float64, streaming, in the feature space of --extractor, which runs in float32.
With the weights of the FID Inception network it is called fid and comes with the Inception score; in any other
encoder's space it is called fd[NAME] and compares only with itself. Sound only when that encoder was trained on real
images alone, is frozen over all rounds, and is not the one that conditions the generator.

Either side may be an image set, a feature table, or a statistics file (.npz with mu and sigma, such as ADM's reference
batches). Beside the distance: its value corrected for the number of images, with a 95 % interval (ten-fold jackknife),
and for image sets and tables a copy check: how far samples are from their nearest real image, against real ones from
each other; a ratio well below 1 says that the generator copies.

Other --metrics: diversity is the mean cosine distance of two images of a class, in the same feature space, for the
samples and for the reference. cka and opd compare two encoders on the same images, given as two feature tables that
are joined by key: 1 minus the linear CKA, beside its debiased form, and the orthogonal Procrustes distance. Both are 0
for spaces that differ by rotation, shift and scale alone. Few images make them too small: independent Gaussians of 512
and 256 dimensions are at cka 0.42, 0.74, 0.92 and opd 0.39, 1.09, 1.53 for 256, 1000 and 4000 images, so compare them
at equal num_images; cka_debiased is near 1 each time. Their 95 % intervals (_low, _high) are of --bootstrap resamples
with repeated images, which are nearer to each other than fresh ones, so that an interval may lie below its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base.config import Preset, option
from corecli.base.errors import UsageError
from corecli.base.files import sniff
from corecli.base.outcome import Outcome
from corecli.commands import _inputs
from corecli.commands._similarity import NUM_RESAMPLES, SCORES, compare_tables

if TYPE_CHECKING:
    import torch

    from corecli.data.statistics import Statistics
    from corecli.engine.dist import World
    from corecli.metrics.frechet import FrechetResult, Moments
    from corecli.nets.extractor import Extractor

EXAMPLES = (
    (
        "FID and IS against CIFAR-10",
        "--reference torchvision:CIFAR10:train --samples syn --extractor pt_inception-2015-12-05-6726825d.pth",
    ),
    ("In the space of an encoder", "--reference DIR --samples syn --extractor judge.safetensors --json"),
    ("How alike two encoders see one set", "--reference z1.safetensors --samples z2.safetensors --metrics cka,opd"),
    ("Keep the reference for later", "--reference DIR --extractor judge.safetensors --save-stats real.npz"),
)
PRESETS: dict[str, Preset] = {}
METRICS = ("fd", "cka", "opd", "diversity")


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli fid`."""

    reference: str = option(help="real images, their features or their statistics", role="input", metavar="SET|FILE")
    samples: tuple[str, ...] = option(
        (), help="images to judge, or their features; repeatable, one result each", role="input", metavar="SET|FILE"
    )
    metrics: tuple[str, ...] = option(("fd",), choices=METRICS, help="what to measure, repeatable or with commas")
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
    copies: bool = option(True, help="compare nearest-image distances beside fd, to see near copies")
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
    if config.bootstrap is not None and not _of_tables(config):
        raise UsageError("--bootstrap is for cka and opd", hint="add --metrics cka,opd")
    kinds = {spec: _kind(spec) for spec in (config.reference, *config.samples)}
    for spec, kind in kinds.items():
        if kind != "features" and _of_tables(config):
            reason = f"{' and '.join(_of_tables(config))} compare two feature tables, and this is none"
            raise UsageError(reason, where=spec, hint="write them with corecli extract")
        if kind == "images":
            _inputs.open_images(spec, config)
            if config.extractor is None:
                raise UsageError("images need --extractor", hint="a file of FID Inception weights, or an encoder")
        elif kind == "statistics" and spec != config.reference:
            raise UsageError(f"{spec}: statistics can only be the --reference")
    if config.extractor is not None and "images" not in kinds.values():
        raise UsageError("--extractor is for images, and there are none", hint="features and statistics have theirs")
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
    if _of_sets(config) or config.save_stats is not None:
        reference = _measure(config, config.reference, extractor, world)
    if config.save_stats is not None and reference is not None:
        lines.append(str(config.save_stats))
        if world.is_main:
            write_statistics(config.save_stats, reference.statistics())
    records, notes = [], list(reference.notes if reference else ())
    for spec in config.samples:
        record: dict[str, Any] = {}
        if reference is not None and _of_sets(config):
            samples = _measure(config, spec, extractor, world)
            record, warnings = _compare(config, spec, samples, reference)
            notes += [*samples.notes, *warnings]
        if _of_tables(config):
            record |= _compare_tables(config, spec, world)
        record["samples"] = spec
        lines += [f"{spec}\t{line}" if len(config.samples) > 1 else line for line in _lines(record)]
        records.append(record)
    return Outcome(lines=tuple(lines), records=tuple(records), notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One side of the comparison in a feature space: its moments or statistics, and its features where at hand."""

    space: str | None
    fingerprint: str | None
    metric: str
    moments: Moments | None = None
    given: Statistics | None = None
    features: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    notes: tuple[str, ...] = ()

    def statistics(self) -> Statistics:
        """Mean and covariance with the space they are in."""
        from corecli.data.statistics import Statistics

        if self.given is not None:
            return self.given
        assert self.moments is not None
        gaussian = self.moments.gaussian()
        return Statistics(
            mean=gaussian.mean.cpu().numpy(),
            covariance=gaussian.matrix().cpu().numpy(),
            space=self.space,
            fingerprint=self.fingerprint,
            num_images=self.moments.num,
        )


def _of_sets(config: Config) -> tuple[str, ...]:
    """The metrics asked for that compare two sets in one feature space."""
    return tuple(name for name in config.metrics if name not in SCORES)


def _of_tables(config: Config) -> tuple[str, ...]:
    """Those that compare two feature spaces on one set."""
    return tuple(name for name in config.metrics if name in SCORES)


def _kind(spec: str) -> str:
    """statistics, features or images."""
    from corecli.base.checkpoint import read_header
    from corecli.data.statistics import holds_statistics

    path = Path(spec)
    found = sniff(path) if path.exists() else "missing"
    if found == "npz" and holds_statistics(path):
        return "statistics"
    if found in ("safetensors", "torch"):
        header = read_header(path)
        if header is not None and header["kind"] == "features":
            return "features"
    return "images"


def _measure(config: Config, spec: str, extractor: Extractor | None, world: World) -> Measured:
    kind = _kind(spec)
    if kind == "statistics":
        from corecli.data.statistics import read_statistics

        found = read_statistics(Path(spec))
        metric = "fid" if (found.space or "inception").startswith("inception") else "fd"
        return Measured(space=found.space, fingerprint=found.fingerprint, metric=metric, given=found)
    if kind == "features":
        return _measure_table(Path(spec))
    assert extractor is not None
    return _measure_images(config, spec, extractor, world)


def _measure_table(path: Path) -> Measured:
    import torch

    from corecli.data.features import load_features
    from corecli.metrics.frechet import Moments

    table = load_features(path)
    moments = Moments(table.features.shape[1])
    moments.update(table.features)
    encoder, space = table.header.get("encoder"), table.header.get("space")
    return Measured(
        space=space,
        fingerprint=encoder,
        metric=f"fd[{str(encoder)[:8]}]",
        moments=moments,
        features=table.features,
        labels=torch.from_numpy(table.labels),
    )


def _measure_images(config: Config, spec: str, extractor: Extractor, world: World) -> Measured:
    """Features of every image, batches dealt out to the ranks; moments and features are then summed over ranks."""
    import torch

    from corecli.data.loader import read_batches
    from corecli.data.order import sequential_batches
    from corecli.engine.dist import sum_over_ranks
    from corecli.engine.progress import Progress
    from corecli.metrics.frechet import Moments

    data = _inputs.open_images(spec, config)
    num, groups = len(data.rows), torch.from_numpy(data.rows.group_ids)
    moments = Moments(extractor.dim)
    diverse = "diversity" in config.metrics
    dtype = torch.float32 if diverse else torch.float16  # of near copies, half the digits are enough
    kept = torch.zeros(num, extractor.dim, dtype=dtype) if diverse or config.copies else None
    logits: torch.Tensor | None = None
    with Progress(f"fid {spec}", total=num, shown=world.is_main and not config.quiet) as progress:
        batches = sequential_batches(num, config.batch_size, rank=world.rank, world_size=world.size)
        workers = _inputs.num_workers(config.workers)
        for images, rows in read_batches(data, batches, device=world.device, workers=workers):
            features, scores = extractor.extract(images)
            moments.update(features.cpu(), groups[rows])
            if kept is not None:
                kept[rows] = features.cpu().to(dtype)
            if scores is not None:
                logits = torch.zeros(num, scores.shape[1]) if logits is None else logits
                logits[rows] = scores.cpu()
            progress.advance(len(rows) * world.size, images=len(rows) * world.size)
    if world.size > 1:
        for tensor in moments.tensors():
            tensor.copy_(sum_over_ranks(tensor))
        kept = None if kept is None else sum_over_ranks(kept)
        logits = None if logits is None else sum_over_ranks(logits)
    return Measured(
        space=extractor.space,
        fingerprint=extractor.fingerprint,
        metric=extractor.metric,
        moments=moments,
        features=kept,
        labels=torch.from_numpy(data.rows.labels),
        logits=logits,
        notes=_inputs.bad_files(data),
    )


def _compare(
    config: Config, spec: str, samples: Measured, reference: Measured
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The record of one comparison, and warnings."""
    from corecli.data.statistics import refuse_other_space

    if (samples.space, samples.fingerprint) != (reference.space, reference.fingerprint):
        refuse_other_space(samples.statistics(), reference.statistics(), where=spec)
    record, warnings = _frechet(config, samples, reference) if "fd" in config.metrics else ({}, ())
    if "diversity" in config.metrics:
        sides = (("diversity", samples, spec), ("reference_diversity", reference, config.reference))
        record |= {name: _diversity(side, where) for name, side, where in sides if side.features is not None}
    return record, warnings


def _frechet(config: Config, samples: Measured, reference: Measured) -> tuple[dict[str, Any], tuple[str, ...]]:
    from corecli.metrics.copies import copy_check
    from corecli.metrics.frechet import Gaussian, compare
    from corecli.metrics.inception_score import inception_score

    assert samples.moments is not None
    other = reference.moments
    if other is None:
        given = reference.statistics()
        other = Gaussian.of(given.mean, given.covariance, given.num_images)  # type: ignore[arg-type]
    result = compare(samples.moments, other)
    record = _describe(samples, result)
    if samples.logits is not None:
        score = inception_score(samples.logits)
        record |= {"is": score.mean, "is_std": score.std}
    if config.copies and samples.features is not None and reference.features is not None:
        copies = copy_check(samples.features, reference.features)
        record |= {
            "nearest_real": copies.mean_to_real,
            "real_nearest_real": copies.mean_among_real,
            "copy_ratio": copies.ratio,
            "copy_fraction": copies.fraction,
        }
    return record, result.warnings


def _diversity(side: Measured, where: str) -> float:
    from corecli.metrics.diversity import diversity

    assert side.features is not None
    assert side.labels is not None
    return diversity(side.features, side.labels, where=where)


def _compare_tables(config: Config, spec: str, world: World) -> dict[str, Any]:
    return compare_tables(
        (Path(config.reference), Path(spec)),
        metrics=config.metrics,
        num_resamples=NUM_RESAMPLES if config.bootstrap is None else config.bootstrap,
        seed=config.seed,
        device=world.device,
        shown=world.is_main and not config.quiet,
    )


def _describe(samples: Measured, result: FrechetResult) -> dict[str, Any]:
    return {
        "metric": samples.metric,
        "value": result.value,
        "corrected": result.corrected,
        "standard_error": result.standard_error,
        "interval": result.interval,
        "num_samples": result.num_samples,
        "num_reference": result.num_reference,
        "space": samples.space,
        "fingerprint": samples.fingerprint,
        "dim": result.dim,
    }


def _lines(record: dict[str, Any]) -> list[str]:
    """`name<TAB>value` for the scores of a record; the Frechet distance goes by the name of its metric."""
    named = {record["metric"]: record["value"]} if "metric" in record else {}
    named |= {name: record[name] for name in _TOLD if record.get(name) is not None}
    return [f"{name}\t{value:.6g}" for name, value in named.items()]


_TOLD = (
    "corrected",
    "standard_error",
    "is",
    "is_std",
    "nearest_real",
    "real_nearest_real",
    "copy_ratio",
    "copy_fraction",
    "diversity",
    "reference_diversity",
    *(f"{name}{end}" for names in SCORES.values() for name in names for end in ("", "_low", "_high")),
    "num_images",
)
