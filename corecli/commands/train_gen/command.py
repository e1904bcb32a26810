"""Check and run `corecli train-gen`; the training step is the loop of `_train`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import DataError, UsageError, about, unknown_name
from corecli.base.outcome import Outcome, produced
from corecli.base.target import is_finished
from corecli.commands.parts.captioned import Captioned, Reader, captioned, check_encoder, of_images
from corecli.commands.parts.inputs import (
    bad_files,
    check_batch,
    check_file,
    check_header,
    check_one_size,
    load_table,
    num_workers,
    open_images,
)
from corecli.commands.train_gen.options import FAMILY_FIELDS, Config
from corecli.diffusion import objectives
from corecli.nets.weights import pipelines
from corecli.nets.weights.text_encoders import find_text_encoder

if TYPE_CHECKING:
    import numpy as np
    import torch

    from corecli.commands.train_gen.conditions import Conditions
    from corecli.commands.train_gen.monitor import Monitor
    from corecli.data.features import FeatureTable
    from corecli.data.imageset import ImageSet, StoredSet
    from corecli.data.neighbors import Neighbors
    from corecli.engine.dist import World
    from corecli.engine.run import Run
    from corecli.generators.parts.learning import Learner, OwnStepLearner, TrainOptions
    from corecli.nets.autoencoder import FirstStage

_ENOUGH_CAPTIONS = 1024  # for the mean and standard deviation of each dimension of their embeddings


def check(config: Config) -> dict[str, Any]:
    """Return what a run would read and write. Errors: as `run`, as far as they can be found without torch."""
    check_file(config.out)
    data = open_images(config.data, config)
    check_one_size(data, config.data)
    condition = _condition_of(config)
    if condition == "labels" and not data.class_names:
        raise DataError("has no labels", where=config.data, hint="--condition labels needs class sub-folders")
    if config.features is not None:
        check_header(config.features, "features")
    if config.captions is not None:
        of_images(config.captions, data.rows, data.class_names)
        check_encoder(config.text_encoder)
    check_batch(data, config.data, config.batch_size)
    _check_unused_options(config, condition)
    _check_family(config, condition)
    return {"num": len(data.rows), "slots": len(data.slots), "conditioned_on": condition, "out": str(config.out)}


def _condition_of(config: Config) -> str:
    """Return none, features, labels or captions. Errors: UsageError if --condition and the files given disagree."""
    given = [name for name in ("features", "captions") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UsageError("--features and --captions exclude each other", hint="give one of them")
    if config.condition == "auto":
        return given[0] if given else "none"
    if config.condition in ("features", "captions") and not given:
        raise UsageError(f"--condition {config.condition} needs --{config.condition}")
    if given and given != [config.condition]:
        raise UsageError(f"--condition {config.condition} does not work with --{given[0]}", hint="give one of them")
    return config.condition


def _check_unused_options(config: Config, condition: str) -> None:
    """Raise UsageError for options that configure another condition."""
    of_features = ("feature_normalization", "feature_noise") if condition != "features" else ()
    of_captions = ("text_encoder", "caption_length") if condition != "captions" else ()
    of_any = ("condition_dropout",) if condition == "none" else ()
    for name in (*of_features, *of_captions, *of_any):
        if getattr(config, name) is not None:
            given = "nothing" if condition == "none" else condition
            raise UsageError(f"{cfg.flag(name)} does not apply to a generator conditioned on {given}")


def _check_family(config: Config, condition: str) -> None:
    """Raise UsageError for what the family of --arch cannot do, as its constants say."""
    family = registry.constants("generators", config.arch)
    for name in cfg.named_values(config.set):
        if name not in family["Options"]:
            raise unknown_name(f"option of {config.arch}", name, family["Options"])
    if config.export_diffusers is not None:
        pipelines.refuse_others(config.export_diffusers)
        objective = registry.constants(objectives.FOLDER, config.objective or "eps")
        if not family.get("DIFFUSERS") or "DIFFUSERS" not in objective:
            reason = f"diffusers has no classes for {config.arch} {config.objective or ''}".rstrip()
            able = " and ".join(_with("generators", "DIFFUSERS"))
            able_objectives = ", ".join(_with(objectives.FOLDER, "DIFFUSERS"))
            raise UsageError(reason, hint=f"{able} can be exported, with the objectives {able_objectives}")
    if config.first_stage is not None and not family.get("FIRST_STAGE"):
        able = " and ".join(_with("generators", "FIRST_STAGE"))
        raise UsageError(f"{config.arch} does not work in latents", hint=f"drop --first-stage; {able} do")
    if config.latent_scale is not None and config.first_stage is None:
        raise UsageError("--latent-scale needs --first-stage")
    if condition not in family.get("CONDITIONS", (condition,)):
        raise UsageError(f"{config.arch} is trained on {' or '.join(family['CONDITIONS'])}, not on {condition}")


def _with(folder: str, constant: str) -> list[str]:
    """Return the choices in a registry folder that define a constant."""
    return [name for name in registry.choices(folder) if registry.constants(folder, name).get(constant)]


def run(config: Config, world: World) -> Outcome:
    """Train and write the average. Errors: DataError, UsageError, CannotCreateError, InterruptedAfterSaving."""
    from corecli.base import checkpoint
    from corecli.commands.train_gen.building import build_learner
    from corecli.commands.train_gen.monitor import Monitor
    from corecli.engine.run import Run, clear_work, open_folder

    data = open_images(config.data, config)
    table, stage, captions = load_table(config.features), _first_stage(config, data), _captioned(config, data)
    inputs = {"data": data.fingerprint, "features": table.header["fingerprint"] if table else None}
    inputs["first_stage"] = checkpoint.fingerprint(stage.autoencoder.state_dict()) if stage else None
    inputs |= captions.inputs if captions else {}
    identity = cfg.identity(config, inputs)
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return _exported(config, produced(config.out, notes=("already there, left alone",)), world)
    generator, conditions, notes = _generator(config, data, table, stage, captions, world)
    learner = build_learner(config.arch, generator, _train_options(config), seed=config.seed, world=world)
    monitor = Monitor(
        learner,
        data,
        conditions,
        world,
        out=config.out,
        seed=config.seed,
        precision=config.precision,
        one_pass=bool(registry.constants("generators", config.arch).get("ONE_PASS")),
    )
    neighbors = _neighbors(config, generator, conditions, world)
    folder = open_folder(config.out, identity, world, force=config.force)
    shown = _prepared(config, generator, data, folder, world)
    with Run(
        folder,
        label="train-gen",
        world=world,
        total_steps=config.steps,
        state=learner.state,
        restore=learner.restore,
        save_every_sec=config.save_sec,
        log_every_steps=config.log_every,
        quiet=config.quiet,
    ) as training:
        batches = _batches(config, data, shown, neighbors, world, first_step=training.first_step)
        _train(config, world, training, batches, conditions, generator, learner, monitor)
        if world.is_main:
            header = {"config": cfg.settings(config), "parents": inputs, "identity": identity}
            monitor.save(arch=config.arch, last_step=config.steps - 1, **header)
            training.finish()
    notes = (*bad_files(data), *notes)
    return _exported(config, produced(config.out, notes=notes, steps=config.steps, folder=str(folder)), world)


def _train(
    config: Config,
    world: World,
    run: Run,
    batches: Iterator[tuple[torch.Tensor, np.ndarray]],
    conditions: Conditions,
    generator: Any,
    learner: Learner | OwnStepLearner,
    monitor: Monitor,
) -> None:
    """Take the steps that are left; the body of the loop is a training step."""
    from torch.nn.utils import clip_grad_norm_

    from corecli.engine.dist import average_gradients
    from corecli.engine.precision import autocast
    from corecli.generators.parts.learning import Learner

    clip = _train_options(config).clip
    for step, (images, rows) in zip(run.steps(), batches, strict=False):
        first = world.rank * len(rows)
        draws = generator.draw(config.seed, step, batch=config.batch_size)[first : first + len(rows)]
        condition = conditions.of(rows, world.device)
        if isinstance(learner, Learner):
            with autocast(config.precision, world.device):
                loss = generator.loss(images, condition, draws)
            learner.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(generator.parameters(), world)
            if clip:
                clip_grad_norm_(generator.parameters(), clip, foreach=True)
            learner.optimizer.step()
            learner.ema.update(generator)
            values = {"loss": loss.detach()}
        else:
            values = learner.learn(images, condition, draws)
        monitor.watch(step, values)
        run.presented(config.batch_size)
        if run.is_log_step(step):
            run.log(step, monitor.figures(step, values))
        monitor.snapshot(step, run.folder, num=config.ema_snapshots, total_steps=config.steps)
        if config.preview_every and (step + 1) % config.preview_every == 0 and world.is_main:
            monitor.preview(run.folder / "previews" / f"step-{step + 1:07d}.png")


def _train_options(config: Config) -> TrainOptions:
    """Return how to train. Errors: UsageError for power averages of a family that keeps none."""
    from corecli.generators.parts.learning import TrainOptions

    family = registry.load("generators", config.arch)
    if config.ema == "power" and hasattr(family, "learner"):
        raise UsageError(f"{config.arch} keeps no power averages", hint="drop --ema")
    return TrainOptions(
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip=getattr(family, "CLIP", 1.0) if config.clip is None else config.clip,
        ema=config.ema,
        ema_decay=config.ema_decay,
        precision=config.precision,
    )


def _first_stage(config: Config, data: ImageSet) -> FirstStage | None:
    """Return the autoencoder of --first-stage. Errors: as `load_first_stage`."""
    if config.first_stage is None:
        return None
    from corecli.nets.weights.autoencoders import load_first_stage

    return load_first_stage(config.first_stage, image_size=data.image_size[0])


def _captioned(config: Config, data: ImageSet) -> Captioned | None:
    """Return the captions of --captions. Errors: DataError, and as `find_text_encoder`."""
    if config.captions is None:
        return None
    texts = of_images(config.captions, data.rows, data.class_names)
    folder = None if config.text_encoder is None else find_text_encoder(config.text_encoder)
    return captioned(config.captions, texts, folder=folder)


def _generator(
    config: Config,
    data: ImageSet,
    table: FeatureTable | None,
    stage: FirstStage | None,
    captions: Captioned | None,
    world: World,
) -> tuple[Any, Conditions, tuple[str, ...]]:
    """Return the generator, the conditions of the images, and notes on captions. Errors: DataError, UsageError."""
    from corecli.commands.train_gen.building import build_generator
    from corecli.commands.train_gen.conditions import read_conditions
    from corecli.engine.precision import place

    check_one_size(data, config.data)
    height, width = data.image_size
    kind, notes = _condition_of(config), ()
    with about(config.features or config.data):
        conditions = read_conditions(kind, data, table)
    reader = Reader(captions.folder, length=config.caption_length, device=world.device) if captions else None
    if height != width:
        raise DataError(f"images of {width} x {height} are not square", where=config.data, hint="give --image-size")
    given = {name: getattr(config, name) for name in FAMILY_FIELDS}
    given |= {"image_size": height, "condition": kind, "first_stage": dict(stage.spec) if stage else None}
    if kind == "features" and conditions.values is not None:
        given["condition_dim"] = conditions.values.shape[1]
    if kind == "labels":
        given["num_classes"] = len(data.class_names)
    if reader is not None:
        given |= {"condition_dim": reader.width, "caption_length": reader.length}
    settings = cfg.named_values(config.set)
    generator = place(build_generator(config.arch, given, settings, first_stage=stage, seed=config.seed), world.device)
    if captions is not None and reader is not None:
        values, notes = reader.encode(generator, captions.texts), reader.cut(captions.texts)
        encoder = {"text_encoder": config.text_encoder, "fingerprint": captions.inputs["text_encoder"]}
        header = {**conditions.header, **encoder}
        conditions = replace(conditions, values=values, which=captions.which, header=header)
        if config.text_encoder is not None:
            generator.conditioning.measure(values[:_ENOUGH_CAPTIONS])
    generator.check_condition(conditions.values)
    return generator, conditions, notes


def _neighbors(config: Config, generator: Any, conditions: Conditions, world: World) -> Neighbors | None:
    """Return the nearest images by features, one of which is shown as the real image of a condition (IC-GAN)."""
    from corecli.data.neighbors import Neighbors

    num = getattr(generator.config, "neighbours", 0)
    if not num or conditions.kind != "features" or conditions.values is None:
        return None
    with about(config.data):
        values = conditions.values if conditions.which is None else conditions.values[conditions.which]
        return Neighbors(values.to(world.device), num, seed=config.seed)


def _prepared(config: Config, generator: Any, data: ImageSet, folder: Path, world: World) -> StoredSet:
    """Return what the generator learns: the images, or their latents, which are computed once into the run folder."""
    from corecli.generators.parts.latent import prepare

    workers = num_workers(config.workers)
    size, quiet = config.batch_size, config.quiet
    return prepare(generator, data, folder, world=world, batch_size=size, workers=workers, quiet=quiet)


def _batches(
    config: Config, data: ImageSet, shown: StoredSet, neighbors: Neighbors | None, world: World, *, first_step: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Yield (images or latents [b, ...], rows [b]) of every step from the first."""
    from corecli.data.loader import Loader
    from corecli.data.order import Order

    order = Order(
        data.slots, segments=data.segments, batch_size=config.batch_size, seed=config.seed, total_steps=config.steps
    )
    workers = num_workers(config.workers)
    loader = Loader(shown, order, world=world, members=neighbors, workers=workers, first_step=first_step)
    yield from ((images if neighbors is None else images[0], rows) for _, images, rows in loader)


def _exported(config: Config, outcome: Outcome, world: World) -> Outcome:
    """Write the folder of --export-diffusers from the target, and add it to the outcome."""
    if config.export_diffusers is None:
        return outcome
    from corecli.base import checkpoint
    from corecli.generators.parts.folders import write_folder

    if world.is_main:
        write_folder(config.export_diffusers, *checkpoint.load(config.out, kind="generator"))
    return replace(outcome, lines=(*outcome.lines, str(config.export_diffusers)))
