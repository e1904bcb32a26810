"""Measure the distance between two image sets.

The Frechet distance is computed in float64, streaming, in the feature space of --extractor, which runs in float32.
With the weights of the FID Inception network it is called fid and comes with the Inception score; in any other
encoder's space it is called fd[NAME] and compares only with itself. Sound only when that encoder was trained on real
images alone, is frozen over all rounds, and is not the one that conditions the generator.

Either side may be an image set, a feature table, or a statistics file (.npz with mu and sigma, such as ADM's reference
batches). Beside the distance: its value corrected for the number of images, with a 95 % interval (ten-fold jackknife),
and for image sets and tables a copy check: how far samples are from their nearest real image, against real ones from
each other; a ratio well below 1 says that the generator copies.
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
    ("Keep the reference for later", "--reference DIR --extractor judge.safetensors --save-stats real.npz"),
)
PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli fid`."""

    reference: str = option(help="real images, their features or their statistics", role="input", metavar="SET|FILE")
    samples: tuple[str, ...] = option(
        (), help="images to judge, or their features; repeatable, one result each", role="input", metavar="SET|FILE"
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
    copies: bool = option(True, help="compare nearest-image distances, to see near copies")
    batch_size: int = option(128, help="images per forward pass", role="runtime", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """What would be compared. Errors: as `run`, as far as they show without torch."""
    if not config.samples and config.save_stats is None:
        raise UsageError("nothing to measure", hint="give --samples or --save-stats")
    if config.precision == "bf16":
        raise UsageError("distances are measured in float32", hint="drop --precision bf16")
    _inputs.check_replaceable(config.save_stats, ("npz",), force=config.force)
    kinds = {spec: _kind(spec) for spec in (config.reference, *config.samples)}
    for spec, kind in kinds.items():
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
    reference = _measure(config, config.reference, extractor, world)
    if config.save_stats is not None and world.is_main:
        write_statistics(config.save_stats, reference.statistics())
    lines = [str(config.save_stats)] if config.save_stats else []
    records, notes = [], list(reference.notes)
    for spec in config.samples:
        samples = _measure(config, spec, extractor, world)
        record, warnings = _compare(spec, samples, reference)
        record["samples"] = spec
        lines += [f"{spec}\t{line}" if len(config.samples) > 1 else line for line in _lines(record)]
        records.append(record)
        notes += [*samples.notes, *warnings]
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
    from corecli.data.features import load_features
    from corecli.metrics.frechet import Moments

    table = load_features(path)
    moments = Moments(table.features.shape[1])
    moments.update(table.features)
    encoder, space = table.header.get("encoder"), table.header.get("space")
    return Measured(
        space=space, fingerprint=encoder, metric=f"fd[{str(encoder)[:8]}]", moments=moments, features=table.features
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
    kept = torch.zeros(num, extractor.dim, dtype=torch.float16) if config.copies else None
    logits: torch.Tensor | None = None
    with Progress(f"fid {spec}", total=num, shown=world.is_main and not config.quiet) as progress:
        batches = sequential_batches(num, config.batch_size, rank=world.rank, world_size=world.size)
        workers = _inputs.num_workers(config.workers)
        for images, rows in read_batches(data, batches, device=world.device, workers=workers):
            features, scores = extractor.extract(images)
            moments.update(features.cpu(), groups[rows])
            if kept is not None:
                kept[rows] = features.cpu().half()
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
        logits=logits,
        notes=_inputs.bad_files(data),
    )


def _compare(spec: str, samples: Measured, reference: Measured) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The record of one comparison, and warnings."""
    from corecli.data.statistics import refuse_other_space
    from corecli.metrics.copies import copy_check
    from corecli.metrics.frechet import Gaussian, compare
    from corecli.metrics.inception_score import inception_score

    assert samples.moments is not None
    if (samples.space, samples.fingerprint) != (reference.space, reference.fingerprint):
        refuse_other_space(samples.statistics(), reference.statistics(), where=spec)
    other = reference.moments
    if other is None:
        given = reference.statistics()
        other = Gaussian.of(given.mean, given.covariance, given.num_images)  # type: ignore[arg-type]
    result = compare(samples.moments, other)
    record = _describe(samples, result)
    if samples.logits is not None:
        score = inception_score(samples.logits)
        record |= {"is": score.mean, "is_std": score.std}
    if samples.features is not None and reference.features is not None:
        copies = copy_check(samples.features, reference.features)
        record |= {
            "nearest_real": copies.mean_to_real,
            "real_nearest_real": copies.mean_among_real,
            "copy_ratio": copies.ratio,
            "copy_fraction": copies.fraction,
        }
    return record, result.warnings


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
    """`name<TAB>value` for the numbers of a record; the distance goes by the name of its metric."""
    named = {record["metric"]: record["value"]}
    names = (
        "corrected",
        "standard_error",
        "is",
        "is_std",
        "nearest_real",
        "real_nearest_real",
        "copy_ratio",
        "copy_fraction",
    )
    named |= {name: record[name] for name in names if record.get(name) is not None}
    return [f"{name}\t{value:.6g}" for name, value in named.items()]
