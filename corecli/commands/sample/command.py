"""Check and run `corecli sample`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome
from corecli.commands.parts.inputs import check_encoder
from corecli.commands.sample.pipeline import Pipelines
from corecli.commands.sample.pipeline import check as pipeline_check
from corecli.commands.sample.plan import shards_asked
from corecli.commands.sample.trained import Trained
from corecli.commands.sample.trained import check as trained_check
from corecli.data.imageset import format_by_name, shard_formats, suffix_of
from corecli.nets.weights import pipelines

if TYPE_CHECKING:
    from corecli.engine.dist import World

from corecli.commands.sample.options import PREFIX, Config


def check(config: Config) -> dict[str, Any]:
    """What would be written. Errors: as `run`, as far as they show without torch."""
    if config.num is not None and config.per_row is not None:
        raise UsageError("--num and --per-row are two ways to say how many", hint="give one")
    _check_shards(config)
    _check_similarity(config)
    kind = pipeline_check(config) if _is_pipeline(config) else trained_check(config)
    return {"conditioned_on": kind, "writes": [str(one.out) for one in _sweep(config)]}


def run(config: Config, world: World) -> Outcome:
    """Sample and publish the set, or one for each guidance. Errors: DataError, UsageError, CannotCreateError."""
    from corecli.commands.sample.writer import Maker

    made = [Maker(one, _source(one), world).make() for one in _sweep(config)]
    return Outcome(
        lines=tuple(line for outcome in made for line in outcome.lines),
        records=tuple(record for outcome in made for record in outcome.records),
        notes=tuple(note for outcome in made for note in outcome.notes),
    )


def _is_pipeline(config: Config) -> bool:
    return config.ckpt.startswith(PREFIX) and not pipelines.is_own(config.ckpt_path)


def _source(config: Config) -> Pipelines | Trained:
    return Pipelines(config) if _is_pipeline(config) else Trained(config)


def _check_shards(config: Config) -> None:
    """Errors: UsageError."""
    if shards_asked(config) is None:
        return
    if suffix_of(format_by_name(config.out)):
        raise UsageError("a directory of shards is no file", where=config.out, hint="name it without the suffix")
    if config.format not in (None, *shard_formats()):
        raise UsageError("shards are files", hint=f"set --format to one of {', '.join(shard_formats())}")


def _check_similarity(config: Config) -> None:
    """Errors: UsageError, and as `check_encoder`."""
    if config.encoder is None:
        if config.min_similarity is not None:
            raise UsageError("--min-similarity needs --encoder", hint="name the encoder of the table")
        return
    if config.features is None and config.images is None:
        raise UsageError("--encoder compares images with what they are made from", hint="give --features or --images")
    check_encoder(config.encoder)


def _sweep(config: Config) -> list[Config]:
    """The config for each guidance; with several, syn.tar becomes syn-g2.tar and syn-g3.tar. Errors: UsageError."""
    scales = config.guidance or ()
    if len(scales) < 2:
        return [config]
    outs = [config.out.with_name(f"{config.out.stem}-g{scale:g}{config.out.suffix}") for scale in scales]
    if len(set(outs)) < len(outs):
        raise UsageError("--guidance names one set twice", hint="give every scale once")
    return [replace(config, guidance=(scale,), out=out) for scale, out in zip(scales, outs, strict=True)]
