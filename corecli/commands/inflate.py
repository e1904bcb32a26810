"""Mix real and synthetic image sets, or convert one.

The mixture is a short JSON file that names its parts. No image is copied, and every verb reads the mixture like any
other image set. --repeat is N in CORE and AdaInf; --beta sets the share of real images instead:
beta = N|D| / (N|D| + |S|). With --materialize the images are written too, in the format of the file name, so that with
one part this verb converts between formats.

The verb prints the number of real and synthetic slots of an epoch, the resulting share of real ones, the expected
number of pairs from one group in a batch, the images per class, and the real images with and without a synthetic
partner. Each pair from one group is a false negative of a contrastive loss; --guard prevents them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corecli.base import config as cfg
from corecli.base.config import Common, Preset, option
from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome
from corecli.base.schemas import is_share
from corecli.base.target import is_finished
from corecli.commands.parts.inputs import bad_files, check_file
from corecli.data.formats.mixture import open_mixture
from corecli.data.imageset import is_written, open_set, writable_formats, write_set
from corecli.data.mix import Mixture, Part, choose_rows, repeat_for_beta, save_mixture, summary
from corecli.engine.environment import find_launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corecli.data.imageset import ImageSet

SUMMARY = "mix real and synthetic image sets, or convert one"
PLACE = 4
IS_ALONE = True
EXAMPLES = (
    ("CORE on CIFAR: real images twice, samples once", "--real DIR --synthetic syn --repeat 2 --out mix.json"),
    (
        "A tenth of each class of the real images, three quarters real",
        "--real DIR --fraction 0.1 --synthetic syn --beta 0.75 --out mix.json",
    ),
    (
        "Second of five generations of a loop: unseen real images and the samples of the first generation",
        "--real DIR --share 2/5 --synthetic syn --out mix.json",
    ),
    ("Pack a directory into one memory-mapped file", "--real DIR --materialize train.safetensors"),
)
PRESETS: dict[str, Preset] = {
    "core-cifar": {"repeat": 2.0},  # CORE Table 12, CF-10, CF-100 and T-IN
    "core-imagenet": {"repeat": 1.0},  # CORE Table 12, IN-1K
    "core-scarce": {"repeat": 10.0, "per_class": 1000},  # CORE C.5
}
CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli inflate`."""

    real: tuple[str, ...] = option((), help="set of real images; repeatable", role="input", metavar="SET")
    synthetic: tuple[str, ...] = option(
        (),
        help="set of synthetic images; repeatable, to accumulate the samples of several rounds",
        role="input",
        metavar="SET",
    )
    out: Path | None = option(None, help="mixture file to write", role="output", metavar="FILE.json")
    materialize: Path | None = option(
        None,
        help="write the images too, in the format of the suffix; without a suffix a directory",
        role="output",
        metavar="PATH",
    )
    format: str | None = option(None, help="format of --materialize (default: by its suffix)", choices=writable_formats)
    repeat: float = option(1.0, help="number of times an epoch shows each real image (N)", minimum=1e-9)
    beta: float | None = option(None, help="share of real slots in an epoch; replaces --repeat", minimum=0, maximum=1)
    fraction: float | None = option(
        None, help="use this fraction of the real images of each class", minimum=0, maximum=1
    )
    per_class: int | None = option(None, help="use this many real images of each class", minimum=1)
    first: int | None = option(None, help="use only this many real images, in order", minimum=1)
    share: str | None = option(
        None, help="use the K-th of N disjoint parts of the real images of each class", metavar="K/N"
    )
    order: Literal["union", "sequential"] = option(
        "union", help="order of an epoch: all parts shuffled together, or one after another"
    )
    guard: bool = option(False, help="put at most one image of a group into a batch")
    missing: Literal["self", "drop", "fail"] = option(
        "self",
        help="real images without a synthetic partner: keep, drop or refuse them",
    )
    round: int | None = option(None, help="number of the round, stored in the mixture", minimum=0)
    image_size: int | None = option(
        None, help="resize and crop images to N px, when writing them or if parts differ in size", minimum=1
    )
    batch_size: int = option(512, help="batch size for which collisions are counted", role="runtime", minimum=1)
    on_bad: Literal["fail", "skip"] = option("fail", help="unreadable images: fail, or skip up to 10 percent of them")


def check(config: Config) -> dict[str, Any]:
    """Return what would be written. Errors: UsageError, MissingInputError, DataError."""
    if not config.real and not config.synthetic:
        raise UsageError("nothing to mix", hint="give --real or --synthetic")
    if config.out is None and config.materialize is None:
        raise UsageError("nothing to write", hint="give --out FILE.json or --materialize PATH")
    if config.out is None and not _is_conversion(config):
        reason = "several parts, a subset or options of a mixture need --out FILE.json"
        raise UsageError(reason, hint="--materialize alone converts one set")
    if config.materialize is None and config.format is not None:
        raise UsageError("--format needs --materialize", hint="a mixture copies no images")
    if config.beta is not None and not (config.real and config.synthetic):
        raise UsageError("--beta needs --real and --synthetic", hint="or use --repeat")
    if config.beta is not None and config.repeat != 1:
        raise UsageError("--beta and --repeat both set how often real images appear", hint="give one")
    if config.share is not None and not is_share(config.share):
        raise UsageError(f"--share {config.share!r} is not K/N", hint="write 2/5 for the second of five parts")
    check_file(config.out)
    for spec in (*config.real, *config.synthetic):
        open_set(spec, image_size=config.image_size)
    return {"writes": [str(path) for path in (config.out, config.materialize) if path is not None]}


def run(config: Config) -> Outcome:
    """Write the mixture, and its images with --materialize. Errors: DataError, CannotCreateError, StorageError."""
    if find_launch(os.environ).rank > 0:
        return Outcome()
    sets = {spec: open_set(spec, on_bad=config.on_bad) for spec in (*config.real, *config.synthetic)}
    identity = cfg.identity(config, {spec: data.fingerprint for spec, data in sets.items()})
    data, notes = _mixed(config, sets, identity)
    if config.materialize is not None:
        notes += _materialize(config.materialize, config, data, identity)
    return _report(config, data, notes)


def _mixed(config: Config, sets: dict[str, ImageSet], identity: dict[str, Any]) -> tuple[ImageSet, tuple[str, ...]]:
    """Return the mixture, written to --out, with a note if it existed already; without --out the only set."""
    if config.out is None:
        return open_set(next(iter(sets)), image_size=config.image_size, on_bad=config.on_bad), ()
    if is_finished(config.out, identity, force=config.force):
        data = open_set(str(config.out), image_size=config.image_size, on_bad=config.on_bad)
        return data, ("already there, left alone",)
    mixture = _mixture(config, sets, identity)
    data = open_mixture(mixture, where=config.out, image_size=config.image_size, on_bad=config.on_bad)
    save_mixture(config.out, mixture)
    return data, ()


def _is_conversion(config: Config) -> bool:
    unset = (config.fraction, config.per_class, config.first, config.share, config.beta, config.round)
    as_it_is = (config.repeat, config.order, config.guard, config.missing) == (1, "union", False, "self")
    return len(config.real) + len(config.synthetic) == 1 and as_it_is and set(unset) == {None}


def _mixture(config: Config, sets: dict[str, ImageSet], identity: dict[str, Any]) -> Mixture:
    """Return the mixture: real sets with subset and repeat, then synthetic ones, with a prefix from the second on."""
    subset = {name: getattr(config, name) for name in ("fraction", "per_class", "first", "share", "seed")}
    real = [Part(set=spec, origin="real", **subset) for spec in config.real]
    synthetic = [
        Part(set=spec, origin="synthetic", prefix=f"synthetic{number}" if number else "")
        for number, spec in enumerate(config.synthetic)
    ]
    repeat = config.repeat
    if config.beta is not None:
        num_real = sum(len(choose_rows(sets[part.set].rows, part, part.set)) for part in real)
        num_synthetic = sum(len(sets[spec].slots) for spec in config.synthetic)
        repeat = repeat_for_beta(config.beta, num_real=num_real, num_synthetic=num_synthetic)
    return Mixture(
        parts=(*(replace(part, repeat=repeat) for part in real), *synthetic),
        order=config.order,
        guard=config.guard,
        missing=config.missing,
        round=config.round,
        identity=identity,
        config=cfg.settings(config),
    )


def _materialize(path: Path, config: Config, data: ImageSet, identity: dict[str, Any]) -> tuple[str, ...]:
    """Write every row once, regardless of --repeat; return a note if the target existed already."""
    identity = {**identity, "materialize": config.format or "by name"}
    if is_written(path, identity, force=config.force):
        return (f"{path} is already there, left alone",)
    header = {"config": cfg.settings(config), "identity": identity}
    write_set(path, data.rows, _chunks(data), class_names=data.class_names, header=header, format=config.format)
    return ()


def _chunks(data: ImageSet) -> Iterator[np.ndarray]:
    for start in range(0, len(data.rows), CHUNK):
        yield data.read_array(np.arange(start, min(start + CHUNK, len(data.rows))))


def _report(config: Config, data: ImageSet, notes: tuple[str, ...]) -> Outcome:
    found = summary(data, config.batch_size)
    lines = [str(path) for path in (config.out, config.materialize) if path is not None]
    lines += [f"{name}\t{found[name]:.6g}" for name in ("real", "synthetic", "beta", "collisions_per_batch")]
    lines += [f"partners_{name}\t{value}" for name, value in found["partners"].items()]
    lines += [f"class {name}\t{real}\t{synthetic}" for name, (real, synthetic) in found["per_class"].items()]
    paths = {"out": config.out, "materialize": config.materialize}
    return Outcome(lines=tuple(lines), records=({**paths, **found},), notes=notes + bad_files(data))
