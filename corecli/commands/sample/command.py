"""Check and run `corecli sample`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError, read_from
from corecli.base.outcome import Outcome
from corecli.commands.parts.captioned import check_encoder as check_text_encoder
from corecli.commands.parts.inputs import check_encoder, check_generator, check_header
from corecli.commands.sample.images import Choice, cut_of, requested_shards
from corecli.commands.sample.options import PREFIX, Config
from corecli.commands.sample.pipeline import Pipelines, arguments, kind_given
from corecli.commands.sample.sampler import Sampling
from corecli.commands.sample.trained import Trained, check_kind, check_table
from corecli.data.captions import read_captions
from corecli.data.imageset import format_by_name, open_set, shard_formats, suffix_of
from corecli.diffusion.samplers import scheduler_of
from corecli.nets.weights import pipelines

if TYPE_CHECKING:
    from corecli.engine.dist import World

_PIPELINES_ONLY = ("images", "negative_prompt")
_GENERATORS_ONLY = ("features", "text_encoder", "spacing", "guidance_interval", "ema_length")
_DIFFUSION_ONLY = ("sampler", "steps", "eta", "spacing", "set", "guidance", "guidance_interval")


def check(config: Config) -> dict[str, Any]:
    """Return what would be written. Errors: those of `run` that can be found without torch."""
    if config.num is not None and config.per_row is not None:
        raise UsageError("--num and --per-row exclude each other", hint="give one")
    _check_shards(config)
    _check_similarity(config)
    kind = _check_pipeline(config) if _is_pipeline(config) else _check_trained(config)
    return {"conditioned_on": kind, "writes": [str(one.out) for one in _sweep(config)]}


def targets(config: Config) -> list[Path]:
    """Return what a run locks: each set, or each requested shard, so that the jobs of an array run side by side."""
    outs = [one.out for one in _sweep(config)]
    cut = requested_shards(config.shards, config.shard)
    if cut is None:
        return outs
    num, indices = cut
    return [out.with_name(f"{out.name}.shard-{index}-of-{num}") for out in outs for index in indices]


def run(config: Config, world: World) -> Outcome:
    """Sample and write the set, or one for each guidance. Errors: DataError, UsageError, CannotCreateError."""
    made = [_make(one, world) for one in _sweep(config)]
    return Outcome(
        lines=tuple(line for outcome in made for line in outcome.lines),
        records=tuple(record for outcome in made for record in outcome.records),
        notes=tuple(note for outcome in made for note in outcome.notes),
    )


def _make(config: Config, world: World) -> Outcome:
    """Sample and write one set."""
    from corecli.commands.sample.similarity import Judge
    from corecli.commands.sample.writer import Maker, Target

    source, judge = _source(config), None
    if config.encoder is not None:
        judge = Judge(
            config.encoder,
            source=source.images.source,
            table=getattr(source, "table", None),
            features=config.features,
            images=config.images,
            min_similarity=config.min_similarity,
            precision=config.precision,
            device=world.device,
            force=config.force,
        )
    target = Target(
        out=config.out,
        format=config.format,
        image_size=config.image_size,
        batch_size=config.batch_size,
        settings=cfg.settings(config),
        identity=cfg.identity(config, {}),
        guidance=config.guidance[0] if config.guidance else None,
        force=config.force,
        quiet=config.quiet,
    )
    cut = cut_of(config.shards, config.shard, len(source.images.rows))
    return Maker(target, source, judge, world).make(cut)


def _source(config: Config) -> Pipelines | Trained:
    choice = Choice(num=config.num, per_row=config.per_row, rows=config.rows, order=config.order, seed=config.seed)
    if _is_pipeline(config):
        call = {
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance[0] if config.guidance else None,
            "negative_prompt": config.negative_prompt,
            "eta": config.eta or None,
        }
        return Pipelines(
            config.ckpt.removeprefix(PREFIX),
            captions=config.captions,
            images=config.images,
            choice=choice,
            sampling=_sampling(config),
            call=call,
            precision=config.precision,
        )
    return Trained(
        config.ckpt_path,
        features=config.features,
        captions=config.captions,
        text_encoder=config.text_encoder,
        choice=choice,
        sampling=_sampling(config),
        ema_length=config.ema_length,
        precision=config.precision,
        force=config.force,
    )


def _sampling(config: Config) -> Sampling:
    return Sampling(
        sampler=config.sampler,
        steps=config.steps,
        eta=config.eta,
        items=config.set,
        spacing=config.spacing,
        guidance=config.guidance[0] if config.guidance else 1.0,
        guidance_interval=config.guidance_interval,
    )


def _is_pipeline(config: Config) -> bool:
    return config.ckpt.startswith(PREFIX) and not pipelines.is_own(config.ckpt_path)


def _sweep(config: Config) -> list[Config]:
    """Return a config for each guidance; of several, syn.tar becomes syn-g2.tar and syn-g3.tar. Errors: UsageError."""
    scales = config.guidance or ()
    if len(scales) < 2:
        return [config]
    outs = [config.out.with_name(f"{config.out.stem}-g{scale:g}{config.out.suffix}") for scale in scales]
    if len(set(outs)) < len(outs):
        raise UsageError("--guidance repeats a value", hint="give each value once")
    return [replace(config, guidance=(scale,), out=out) for scale, out in zip(scales, outs, strict=True)]


def _check_shards(config: Config) -> None:
    """Check --shards and --shard. Errors: UsageError."""
    if requested_shards(config.shards, config.shard) is None:
        return
    if suffix_of(format_by_name(config.out)):
        raise UsageError("shards are written to a directory", where=config.out, hint="give a name without a suffix")
    if config.format not in (None, *shard_formats()):
        raise UsageError("shards are files", hint=f"set --format to one of {', '.join(shard_formats())}")


def _check_similarity(config: Config) -> None:
    """Check --encoder and --min-similarity. Errors: UsageError, and as `check_encoder`."""
    if config.encoder is None:
        if config.min_similarity is not None:
            raise UsageError("--min-similarity needs --encoder", hint="name the encoder of the table")
        return
    if config.features is None and config.images is None:
        reason = "--encoder compares images with the rows or images they are made from"
        raise UsageError(reason, hint="give --features or --images")
    check_encoder(config.encoder)


def _check_pipeline(config: Config) -> str:
    """Return what a pipeline's images are made from. Errors: UsageError, DataError, MissingInputError."""
    for name in _GENERATORS_ONLY:
        if getattr(config, name) is not None:
            hint = "use --set for options of its scheduler" if name == "spacing" else None
            raise UsageError(f"{cfg.flag(name)} does not apply to a pipeline", where=config.ckpt, hint=hint)
    kind = kind_given(config.captions, config.images)
    if kind == "none":
        _check_rows(config, "--captions or --images")
    arguments(config.set)
    if config.sampler is not None:
        scheduler_of(config.sampler)
    folder = Path(config.ckpt.removeprefix(PREFIX))
    if folder.is_dir():
        pipelines.check_pipeline(folder)
    if config.captions is not None:
        read_captions(config.captions).rows(config.captions)
    if config.images is not None:
        open_set(config.images)
    return kind


def _check_trained(config: Config) -> str:
    """Return what the generator is conditioned on. Errors: UsageError, DataError, MissingInputError."""
    header = check_generator(config.ckpt_path)
    for name in _PIPELINES_ONLY:
        if getattr(config, name):
            raise UsageError(f"{cfg.flag(name)} applies only to pipelines of diffusers", where=config.ckpt)
    if config.features is not None:
        table = check_header(config.features, "features")
        check_table(header, table, ckpt=config.ckpt_path, features=config.features, force=config.force)
    kind = header["condition"]["kind"]
    if kind in ("features", "captions") and getattr(config, kind) is None:
        raise UsageError(f"the generator is conditioned on {kind}", where=config.ckpt, hint=f"give --{kind}")
    _check_captions(config, header["condition"])
    if config.features is None and config.captions is None:
        _check_rows(config, "--features or --captions")
    _check_sampling(config, header)
    _check_guidance(config, header)
    return kind


def _check_rows(config: Config, needed: str) -> None:
    if config.rows is not None or config.order != "table":
        raise UsageError(f"--rows and --order need {needed}")


def _check_captions(config: Config, condition: dict[str, Any]) -> None:
    """Check --captions and --text-encoder. Errors: UsageError, and as `read_captions`."""
    if config.captions is not None:
        check_kind(condition["kind"], "captions", config.ckpt_path)
    if config.text_encoder is not None and condition.get("text_encoder") is None:
        reason = "the generator was trained without a frozen text encoder"
        raise UsageError(reason, where=config.ckpt, hint="drop --text-encoder")
    if config.captions is not None:
        read_captions(config.captions).rows(config.captions)
        check_text_encoder(config.text_encoder or condition.get("text_encoder"))


def _check_sampling(config: Config, header: dict[str, Any]) -> None:
    """Check the options of diffusion. Errors: UsageError; DataError for an unknown family."""
    with read_from(config.ckpt, "the generator cannot be built"):
        constants = registry.constants("generators", header["arch"])
    if not constants.get("ONE_PASS"):
        sampler = _sampling(config).sampler_for(header["generator"])
        if sampler is not None:
            _sampling(config).options_for(sampler)
        return
    options = cfg.described(type(config))
    for name in _DIFFUSION_ONLY:
        if getattr(config, name) != options[name][0].default:
            reason = f"{cfg.flag(name)} does not apply to {header['arch']}, which makes an image in one pass"
            raise UsageError(reason, where=config.ckpt)


def _check_guidance(config: Config, header: dict[str, Any]) -> None:
    """Check --guidance, which needs a generator trained with condition dropout. Errors: UsageError."""
    _ = _sampling(config).interval
    if set(config.guidance or (1,)) == {1}:
        return
    if header["condition"]["kind"] == "none":
        raise UsageError("the generator is unconditional", where=config.ckpt, hint="drop --guidance")
    if not header["generator"].get("condition_dropout"):
        hint = "drop --guidance, or train with --condition-dropout above 0"
        raise UsageError("the generator was trained without condition dropout", where=config.ckpt, hint=hint)
