"""Check and run `corecli train-gen`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.outcome import Outcome, produced
from corecli.base.target import is_finished
from corecli.commands.parts.captioned import captioned, check_encoder, of_images
from corecli.commands.parts.inputs import (
    bad_files,
    check_batch,
    check_file,
    check_header,
    load_table,
    num_workers,
    open_images,
)
from corecli.commands.train_gen.presets import PRESETS as PRESETS
from corecli.nets.weights import pipelines
from corecli.nets.weights.text_encoders import find_text_encoder

if TYPE_CHECKING:
    from corecli.commands.parts.captioned import Captioned
    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World
    from corecli.nets.autoencoder import FirstStage

from corecli.commands.train_gen.options import Config


def check(config: Config) -> dict[str, Any]:
    """What would be read and written. Errors: as `run`, as far as they show without torch."""
    check_file(config.out)
    data = open_images(config.data, config)
    condition = condition_of(config)
    if condition == "labels" and not data.class_names:
        raise DataError("has no labels", where=config.data, hint="--condition labels needs class sub-folders")
    if config.features is not None:
        check_header(config.features, "features")
    if config.captions is not None:
        of_images(config.captions, data.rows, data.class_names)
        check_encoder(config.text_encoder)
    check_batch(data, config.data, config.batch_size)
    _refuse_idle(config, condition)
    family = registry.constants("generators", config.arch)
    if config.export_diffusers is not None:
        _check_export(config, config.export_diffusers, family)
    for name in cfg.named_values(config.set):
        if name not in family["Options"]:
            raise unknown_name(f"option of {config.arch}", name, family["Options"])
    if config.latent_scale is not None and config.first_stage is None:
        raise UsageError("--latent-scale needs --first-stage")
    if condition not in family.get("CONDITIONS", (condition,)):
        raise UsageError(f"{config.arch} is trained on {' or '.join(family['CONDITIONS'])}, not on {condition}")
    return {"num": len(data.rows), "slots": len(data.slots), "conditioned_on": condition, "out": str(config.out)}


def _check_export(config: Config, folder: Path, family: dict[str, Any]) -> None:
    """Errors: UsageError for what diffusers has no classes for, CannotCreateError."""
    pipelines.refuse_others(folder)
    objective = registry.constants("diffusion/objectives", config.objective or "eps")
    if "DIFFUSERS" not in family or "DIFFUSERS" not in objective:
        reason = f"diffusers has no classes for {config.arch} {config.objective or ''}".rstrip()
        raise UsageError(reason, hint="adm and ldm are exported, with the objectives eps, v and x0")


def condition_of(config: Config) -> str:
    """none, features, labels or captions. Errors: UsageError when --condition and what is given disagree."""
    given = [name for name in ("features", "captions") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UsageError("--features and --captions are two conditions", hint="give one of them")
    if config.condition == "auto":
        return given[0] if given else "none"
    if config.condition in ("features", "captions") and not given:
        raise UsageError(f"--condition {config.condition} needs --{config.condition}")
    if given and given != [config.condition]:
        raise UsageError(f"--condition {config.condition} does not go with --{given[0]}", hint="give one of them")
    return config.condition


def _first_stage(config: Config, data: ImageSet) -> FirstStage | None:
    """The autoencoder of --first-stage. Errors: as `nets.autoencoder_files.load_first_stage`."""
    if config.first_stage is None:
        return None
    from corecli.nets.weights.autoencoders import load_first_stage

    return load_first_stage(config.first_stage, image_size=data.image_size[0])


def _captioned(config: Config, data: ImageSet) -> Captioned | None:
    """The captions of --captions. Errors: DataError, and as `text_files.find_text_encoder`."""
    if config.captions is None:
        return None
    texts = of_images(config.captions, data.rows, data.class_names)
    folder = None if config.text_encoder is None else find_text_encoder(config.text_encoder)
    return captioned(config.captions, texts, folder=folder)


def _refuse_idle(config: Config, condition: str) -> None:
    """UsageError for options of a condition that is not there."""
    of_features = ("feature_normalization", "feature_noise") if condition != "features" else ()
    of_captions = ("text_encoder", "caption_length") if condition != "captions" else ()
    of_any = ("condition_dropout",) if condition == "none" else ()
    for name in (*of_features, *of_captions, *of_any):
        if getattr(config, name) is not None:
            given = "nothing" if condition == "none" else condition
            raise UsageError(f"{cfg.flag(name)} does not apply to a generator conditioned on {given}")


def run(config: Config, world: World) -> Outcome:
    """Train and publish the average. Errors: DataError, UsageError, CannotCreateError, InterruptedAfterSaving."""
    from corecli.base import checkpoint
    from corecli.commands.train_gen.trainer import GenTrainer
    from corecli.data.loader import Loader
    from corecli.data.order import Order
    from corecli.engine.run import Run, clear_work, open_folder

    data = open_images(config.data, config)
    table, stage = load_table(config.features), _first_stage(config, data)
    inputs = {"data": data.fingerprint, "features": table.header["fingerprint"] if table else None}
    inputs["first_stage"] = checkpoint.fingerprint(stage.autoencoder.state_dict()) if stage else None
    captions = _captioned(config, data)
    inputs |= captions.inputs if captions else {}
    identity = cfg.identity(config, inputs)
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return _exported(config, produced(config.out, notes=("already there, left alone",)), world)
    trainer = GenTrainer(config, data, table, stage, captions, condition=condition_of(config), world=world)
    order = Order(
        data.slots,
        segments=data.segments,
        batch_size=config.batch_size,
        seed=config.seed,
        total_steps=config.steps,
    )
    folder = open_folder(config.out, identity, world, force=config.force)
    shown = trainer.prepare(folder)
    with Run(
        folder,
        label="train-gen",
        world=world,
        total_steps=config.steps,
        state=trainer.state,
        restore=trainer.restore,
        save_every_sec=config.save_sec,
        log_every_steps=config.log_every,
        quiet=config.quiet,
    ) as steps:
        workers = num_workers(config.workers)
        loader = Loader(
            shown, order, world=world, members=trainer.neighbors, workers=workers, first_step=steps.first_step
        )
        for step, (_, images, rows) in zip(steps.steps(), loader, strict=False):
            learned = trainer.learn(step, images, rows)
            steps.presented(config.batch_size)
            if steps.is_log_step(step):
                steps.log(step, trainer.figures(step, learned))
            trainer.keep_averages(step, folder)
            if config.preview_every and (step + 1) % config.preview_every == 0 and world.is_main:
                trainer.preview(folder / "previews" / f"step-{step + 1:07d}.png")
        if world.is_main:
            trainer.save(config.out, config=cfg.settings(config), parents=inputs, identity=identity)
            steps.finish()
            trainer.tidy(folder)
    notes = (*bad_files(data), *trainer.notes)
    return _exported(config, produced(config.out, notes=notes, steps=config.steps, folder=str(folder)), world)


def _exported(config: Config, outcome: Outcome, world: World) -> Outcome:
    """The outcome with the folder of --export-diffusers, which holds the target's generator."""
    if config.export_diffusers is None:
        return outcome
    from corecli.base import checkpoint
    from corecli.generators.parts.folders import write_folder

    if world.is_main:
        write_folder(config.export_diffusers, *checkpoint.load(config.out, kind="generator"))
    return replace(outcome, lines=(*outcome.lines, str(config.export_diffusers)))
