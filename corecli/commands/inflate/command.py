"""Check and run `corecli inflate`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base import config as cfg
from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome
from corecli.base.schemas import is_share
from corecli.base.target import is_finished
from corecli.commands.inflate.options import Config
from corecli.commands.parts.inputs import bad_files, check_file
from corecli.data.encoded import AS_READ, encoded_images, parse_encoding
from corecli.data.formats.mixture import open_mixture
from corecli.data.imageset import is_written, open_set, write_encoded, write_set
from corecli.data.mix import Mixture, Part, choose_rows, repeat_for_beta, save_mixture, summary
from corecli.engine.environment import find_launch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corecli.data.imageset import ImageSet

IS_ALONE = True
CHUNK = 1024  # images that are read at a time


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
    _check_encoding(config)
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


def _check_encoding(config: Config) -> None:
    """Check --encode and --max-px. Errors: UsageError."""
    if config.encode is None and config.max_px is not None:
        raise UsageError("--max-px needs --encode", hint="add --encode jpeg:90")
    if config.encode is None:
        return
    if config.materialize is None:
        raise UsageError("--encode needs --materialize", hint="a mixture copies no images")
    if parse_encoding(config.encode, config.max_px) is None and config.image_size is not None:
        raise UsageError("--image-size changes images, and --encode as-read keeps them", hint="use --encode jpeg:90")


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
    if config.encode is not None:
        identity = {**identity, "encode": config.encode, "max_px": config.max_px}
    if is_written(path, identity, force=config.force):
        return (f"{path} is already there, left alone",)
    header = {"config": cfg.settings(config), "identity": identity}
    names, format = data.class_names, config.format
    if config.encode is None and not data.is_mixed:
        write_set(path, data.rows, _chunks(data), class_names=names, header=header, format=format)
    else:
        images = encoded_images(data, parse_encoding(config.encode or AS_READ, config.max_px))
        write_encoded(path, data.rows, images, class_names=names, header=header, format=format)
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
