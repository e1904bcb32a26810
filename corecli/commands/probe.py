"""Score an encoder's features on labels.

Features are computed once (or read from tables that `extract` wrote), standardised by the training set, and a linear
classifier is trained on them with a sweep of learning rates and weight decays, all in one pass. The setting is chosen
on a hold-out of the training set, never on the test set; the classifier is trained again on all of it and scored once.
Repeated over --seeds. A weighted k-NN vote (k = 20, temperature 0.07) is scored from the same features.

Labels are joined by class name where both sets have names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corecli.base.checkpoint import read_header
from corecli.base.config import Preset, option
from corecli.base.errors import DataError, UsageError, about
from corecli.base.files import sniff
from corecli.base.outcome import Outcome
from corecli.commands import _inputs

if TYPE_CHECKING:
    import torch

    from corecli.engine.dist import World
    from corecli.metrics.knn import KnnResult
    from corecli.metrics.linear_probe import ProbeResult
    from corecli.nets.encoder import Encoder

EXAMPLES = (
    ("Accuracy of an encoder", "--encoder f.safetensors --train train --test test"),
    ("From feature tables", "--train z_train.safetensors --test z_test.safetensors --json"),
)
PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli probe`."""

    train: str = option(help="labelled image set, or feature table", role="input", metavar="SET|FILE")
    test: str = option(help="labelled image set, or feature table", role="input", metavar="SET|FILE")
    encoder: str | None = option(None, help="encoder file, or timm:NAME[:WEIGHTS]", role="input", metavar="FILE|NAME")
    layer: Literal["backbone", "projector"] = option("backbone", help="which features")
    seeds: int = option(3, help="repetitions, for the interval", minimum=1)
    epochs: int = option(20, help="passes over the training features, and at least 500 steps", minimum=1)
    k: int = option(20, help="neighbours of the k-NN vote", minimum=1)
    per_class: bool = option(False, help="also print the accuracy of each class", role="runtime")
    batch_size: int = option(256, help="images per forward pass", role="runtime", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """What would be scored. Errors: as `run`, as far as they show without torch."""
    specs = (config.train, config.test)
    if config.encoder is not None:
        if all(_is_table(spec) for spec in specs):
            raise UsageError("--encoder is for image sets, and these are feature tables", hint="drop --encoder")
        _inputs.check_encoder(config.encoder)
    for spec, least in zip(specs, (2, 1), strict=True):
        if not _is_table(spec):
            data = _inputs.open_images(spec, config)
            if config.encoder is None:
                raise UsageError("an image set needs --encoder", where=spec)
            _check_classes(data.rows.labels, spec, least=least)
    if not config.force:
        _check_spaces(config)
    return {"reads": [f"{spec} ({'features' if _is_table(spec) else 'images'})" for spec in specs]}


def run(config: Config, world: World) -> Outcome:
    """Compute features, train the probe, print scores. Errors: DataError, UsageError."""
    from corecli.metrics.knn import knn_classify
    from corecli.metrics.linear_probe import ProbeOptions, linear_probe
    from corecli.nets.encoder import load_encoder

    encoder = None if config.encoder is None else load_encoder(config.encoder).to(world.device).eval()
    train = _labelled(config, config.train, encoder, world, least=2)
    test = _labelled(config, config.test, encoder, world, least=1)
    if not world.is_main:
        return Outcome()
    with about(config.test):
        _check_dimensions(test.features, train.features)
        test_labels = _by_name(test, train)
    arrays = (train.features, train.labels, test.features, test_labels)
    options = ProbeOptions(num_epochs=config.epochs, num_seeds=config.seeds, seed=config.seed)
    linear = linear_probe(*arrays, options)
    return _report(config, linear, knn_classify(*arrays, k=config.k), train.class_names)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Features [N, D] with labels [N] and the names of their classes."""

    features: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]


def _is_table(spec: str) -> bool:
    header = _header(spec)
    return header is not None and header["kind"] == "features"


def _header(spec: str) -> dict[str, Any] | None:
    path = Path(spec)
    return read_header(path) if path.exists() and sniff(path) in ("safetensors", "torch") else None


def _check_classes(labels: np.ndarray, spec: str, *, least: int) -> None:
    """Errors: DataError unless the known labels are of `least` classes or more."""
    num = len(np.unique(labels[labels >= 0]))
    if num == 0:
        raise DataError("has no labels to score on", where=spec, hint="class sub-folders give labels")
    if num < least:
        raise DataError("all its labels are of one class", where=spec, hint="a probe learns to tell two or more apart")


def _check_spaces(config: Config) -> None:
    """Errors: DataError when train and test are known to be features of two encoders, or of two layers."""
    encoder = _header(config.encoder) if config.encoder else None
    spaces = []
    for spec in (config.train, config.test):
        header = _header(spec) if _is_table(spec) else None
        if header is not None:
            spaces.append((header.get("encoder"), header.get("layer")))
        elif encoder is not None:
            spaces.append((encoder["fingerprint"], config.layer))
    if len(spaces) == 2 and spaces[0] != spaces[1]:
        told = [f"{layer} of {str(fingerprint)[:12]}" for fingerprint, layer in spaces]
        hint = "extract both with one encoder and layer; --force accepts it"
        raise DataError(f"features are {told[1]}, those of {config.train} {told[0]}", where=config.test, hint=hint)


def _check_dimensions(test: torch.Tensor, train: torch.Tensor) -> None:
    """Errors: DataError when --force has let features of two lengths pass."""
    if test.shape[1] != train.shape[1]:
        reason = f"features of {test.shape[1]} dimensions, the training set's have {train.shape[1]}"
        raise DataError(reason, hint="extract both with one encoder and layer")


def _labelled(config: Config, spec: str, encoder: Encoder | None, world: World, *, least: int) -> Labelled:
    """The labelled rows of a table or an image set; unlabelled ones are left out."""
    import torch

    from corecli.data.features import load_features

    if _is_table(spec):
        table = load_features(Path(spec))
        features, labels, names = table.features, table.labels, tuple(table.header.get("class_names", ()))
    else:
        assert encoder is not None
        data = _inputs.open_images(spec, config)
        features, labels, names = _features(config, spec, encoder, world), data.rows.labels, data.class_names
    _check_classes(labels, spec, least=least)
    rows = torch.from_numpy(np.flatnonzero(labels >= 0))
    return Labelled(
        features=features[rows].to(world.device),
        labels=torch.from_numpy(labels)[rows].to(world.device),
        class_names=names,
    )


def _features(config: Config, spec: str, encoder: Encoder, world: World) -> torch.Tensor:
    """Features of an image set, its batches dealt out to the ranks and summed over them."""
    import torch

    from corecli.data.loader import read_batches
    from corecli.data.order import sequential_batches
    from corecli.engine.dist import sum_over_ranks
    from corecli.engine.precision import autocast
    from corecli.engine.progress import Progress

    data = _inputs.open_images(spec, config)
    layer: Any = config.layer
    num = len(data.rows)
    dim = encoder.num_features if layer == "backbone" else encoder.projector_dim or 0
    features = torch.zeros(num, dim)
    with Progress(f"probe {spec}", total=num, shown=world.is_main and not config.quiet) as progress:
        batches = sequential_batches(num, config.batch_size, rank=world.rank, world_size=world.size)
        workers = _inputs.num_workers(config.workers)
        for images, rows in read_batches(data, batches, device=world.device, workers=workers):
            with autocast(config.precision, world.device):
                features[rows] = encoder.encode(images, layer).cpu()
            progress.advance(len(rows) * world.size, images=len(rows) * world.size)
    return sum_over_ranks(features) if world.size > 1 else features


def _by_name(test: Labelled, train: Labelled) -> torch.Tensor:
    """Test labels as the training set numbers its classes. Errors: DataError for a class it does not have."""
    import torch

    if not (test.class_names and train.class_names) or test.class_names == train.class_names:
        return test.labels
    used = sorted({test.class_names[i] for i in test.labels.tolist()})
    unknown = [name for name in used if name not in train.class_names]
    if unknown:
        reason = f"classes that the training set has not: {', '.join(unknown[:5])}"
        raise DataError(reason, hint="train on all classes of the test set")
    numbers = torch.tensor([train.class_names.index(n) if n in train.class_names else -1 for n in test.class_names])
    return numbers.to(test.labels.device)[test.labels]


def _report(config: Config, linear: ProbeResult, knn: KnnResult, names: tuple[str, ...]) -> Outcome:
    scores = {"top1": linear.top1, "top5": linear.top5, "mean_per_class": linear.mean_per_class}
    scores |= {"knn_top1": knn.top1, "knn_top5": knn.top5}
    per_class = {names[label] if names else str(label): value for label, value in linear.per_class.items()}
    lines = [f"{name}\t{value:.6g}" for name, value in scores.items() if value is not None]
    for name, interval in (("seeds", linear.seed_interval), ("test", linear.test_interval)):
        if interval is not None:
            lines.append(f"top1_interval_{name}\t{interval[0]:.6g}\t{interval[1]:.6g}")
    if config.per_class:
        lines += [f"class {name}\t{value:.6g}" for name, value in per_class.items()]
    record = {
        **scores,
        "per_class": per_class,
        "top1_interval_seeds": linear.seed_interval,
        "top1_interval_test": linear.test_interval,
        "top1_by_seed": linear.top1_by_seed,
        "settings": linear.settings,
        "num_train": linear.num_train,
        "num_test": linear.num_test,
        "encoder": config.encoder,
        "layer": config.layer,
    }
    return Outcome(lines=tuple(lines), records=(record,))
