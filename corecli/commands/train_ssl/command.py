"""Check and run `corecli train-ssl`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base.errors import DataError
from corecli.base.outcome import Outcome, produced
from corecli.base.rng import derive
from corecli.base.target import is_finished
from corecli.commands.parts.inputs import (
    bad_files,
    check_encoder,
    check_file,
    check_header,
    load_table,
    num_workers,
    open_images,
)
from corecli.commands.train_ssl.plan import StagePlan, account, plan_stages, projector_of
from corecli.commands.train_ssl.presets import PRESETS as PRESETS
from corecli.data.members import Members

if TYPE_CHECKING:
    import numpy as np
    import torch

    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World
    from corecli.nets.encoder import Encoder

from corecli.commands.train_ssl.options import Config


def check(config: Config) -> dict[str, Any]:
    """What would be read, shown and written. Errors: as `run`, as far as they show without torch."""
    check_file(config.out)
    data = open_images(config.data, config)
    if config.init is not None:
        check_encoder(config.init)
    if config.features is not None:
        check_header(config.features, "features")
    stages = plan_stages(config, data)
    projector_of(config, stages)
    shown = account(config, data, stages)
    return {"num": len(data.rows), "slots": stages[0].epoch_images, **shown, "out": str(config.out)}


def run(config: Config, world: World) -> Outcome:
    """Train, stage by stage, and publish the encoder. Errors: DataError, CannotCreateError, InterruptedAfterSaving."""
    from corecli.commands.train_ssl.learner import Learner
    from corecli.data.memory import keep_freed_memory
    from corecli.engine.progress import note
    from corecli.engine.run import Run, clear_work, open_folder
    from corecli.nets.encoder import save_encoder

    keep_freed_memory()
    data = open_images(config.data, config)
    stages = plan_stages(config, data)
    table, encoder = load_table(config.features), _encoder(config, data, stages)
    inputs = {"data": data.fingerprint, "features": table.header["fingerprint"] if table else None}
    identity = cfg.identity(config, {**inputs, "init": encoder.fingerprint if config.init else None})
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return produced(config.out, notes=("already there, left alone",))
    learner = Learner(config, encoder, data, table, stages=stages, world=world)
    folder = open_folder(config.out, identity, world, force=config.force)
    total_steps = sum(stage.steps for stage in stages)
    if world.is_main and not config.quiet:
        told = (f"{name.replace('_', ' ')} {value}" for name, value in account(config, data, stages).items())
        note(f"train-ssl: {', '.join(told)}")
    with Run(
        folder,
        label="train-ssl",
        world=world,
        total_steps=total_steps,
        state=learner.state,
        restore=learner.restore,
        save_every_sec=config.save_sec,
        log_every_steps=config.log_every,
        quiet=config.quiet,
    ) as steps:
        batches = _batches(config, data, stages, world, first_step=steps.first_step)
        for step, (images, rows) in zip(steps.steps(), batches, strict=False):
            learned = learner.learn(step, images, rows)
            steps.presented(config.batch_size)
            if steps.is_log_step(step):
                steps.log(step, learner.figures(learned))
        if world.is_main:
            trained = learner.published()
            save_encoder(config.out, trained, config=cfg.settings(config), parents=inputs, identity=identity)
            steps.finish()
    return produced(config.out, notes=bad_files(data), steps=total_steps, folder=str(folder))


def _batches(
    config: Config, data: ImageSet, stages: tuple[StagePlan, ...], world: World, *, first_step: int
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """(uint8 images [E, b, 3, H, W], rows [b]) of every step from the first, each stage with an order of its own."""
    from corecli.data.loader import Loader
    from corecli.data.order import Order

    for index, stage in enumerate(stages):
        seed = config.seed if index == 0 else derive(config.seed, "stage", index)
        order = Order(
            stage.slots,
            segments=stage.segments,
            batch_size=config.batch_size,
            seed=seed,
            total_steps=stage.steps,
            distinct_groups=data.rows.group_ids if config.guard or data.guard else None,
            sets=stage.sets,
        )
        probability = 0.5 if config.synthetic_probability is None else config.synthetic_probability
        members = Members(data.rows, stage.entries, seed=seed, synthetic_probability=probability)
        workers = num_workers(config.workers)
        done = min(first_step, stage.steps)
        loader = Loader(
            data,
            order,
            world=world,
            members=members,
            workers=workers,
            first_step=done,
            parts=config.accumulate,
        )
        yield from ((images, rows) for _, images, rows in loader)
        first_step -= done


def _encoder(config: Config, data: ImageSet, stages: tuple[StagePlan, ...]) -> Encoder:
    """A new encoder with weights drawn from the seed, or the one of --init."""
    from corecli.nets.encoder import build_encoder, load_encoder

    projector = projector_of(config, stages)
    height, width = data.image_size
    if config.init is not None:
        encoder = load_encoder(config.init)
        encoder.set_image_size(height)
        if encoder.projector is None:
            encoder.set_projector(projector, seed=config.seed)
        return encoder
    if height != width:
        raise DataError(f"images of {width} x {height} are not square", where=config.data, hint="give --image-size")
    encoder = build_encoder(
        config.backbone,
        image_size=height,
        stem=None if config.stem == "auto" else config.stem,
        projector_dim=None,
        drop_path=config.drop_path,
        seed=config.seed,
    )
    encoder.set_projector(projector, seed=config.seed)
    return encoder
