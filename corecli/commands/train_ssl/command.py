"""Check and run `corecli train-ssl`; `_train` shows a whole training step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError, about
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
from corecli.commands.train_ssl.building import Stages, as_evaluated, image_px, published_projector, start_encoder
from corecli.commands.train_ssl.options import Config
from corecli.commands.train_ssl.stages import (
    TrainStage,
    check_positives,
    check_unused_options,
    cuts_when_read,
    plan_of,
    read_epoch,
    read_views,
)
from corecli.data.members import Members
from corecli.engine import schedule

if TYPE_CHECKING:
    import numpy as np
    import torch

    from corecli.commands.train_ssl.learner import Columns, Learner, Monitor
    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World
    from corecli.engine.run import Run
    from corecli.nets.encoder import Encoder
    from corecli.ssl.parts.method import Method

Batches = Iterator[tuple[Any, "np.ndarray"]]


def check(config: Config) -> dict[str, Any]:
    """Return what a run would read, show and write. Errors: as `run`, as far as they can be found without torch."""
    check_file(config.out)
    data = open_images(config.data, config)
    if config.init is not None:
        check_encoder(config.init)
    if config.features is not None:
        check_header(config.features, "features")
    stages = _stages(config, data)
    published_projector(config, stages)
    image_px(config, data)
    plan = plan_of(stages, data.rows, config.batch_size)
    return {"num": len(data.rows), "slots": stages[0].epoch.num_images, **plan, "out": str(config.out)}


def run(config: Config, world: World) -> Outcome:
    """Train, stage by stage, and write the encoder. Errors: DataError, CannotCreateError, InterruptedAfterSaving."""
    from corecli.commands.train_ssl.learner import Columns, Learner, Monitor
    from corecli.data.memory import keep_freed_memory
    from corecli.engine.precision import place
    from corecli.engine.progress import note
    from corecli.engine.run import Run, clear_work, open_folder
    from corecli.nets.encoder import save_encoder
    from corecli.ssl.parts.online import OnlineProbe

    keep_freed_memory()
    data = open_images(config.data, config)
    stages = _stages(config, data)
    table, encoder = load_table(config.features), start_encoder(config, data, stages)
    inputs = {"data": data.fingerprint, "features": table.header["fingerprint"] if table else None}
    identity = cfg.identity(config, {**inputs, "init": encoder.fingerprint if config.init else None})
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return produced(config.out, notes=("already there, left alone",))
    quiet = config.quiet or not world.is_main
    encoder = place(encoder, world.device)
    with about(config.features):
        columns = Columns(data.rows, table)
    num_classes = columns.num_classes
    probe = OnlineProbe(encoder, num_classes, world) if num_classes > 1 else None
    start = partial(_start, config, world, encoder, columns, stages)
    learner = Learner(stages, start, probe=probe, quiet=quiet)
    monitor = Monitor(encoder, as_evaluated(config, data), world, out=config.out, quiet=quiet)
    folder = open_folder(config.out, identity, world, force=config.force)
    if not quiet:
        plan = plan_of(stages, data.rows, config.batch_size)
        note("train-ssl: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in plan.items()))
    with Run(
        folder,
        label="train-ssl",
        world=world,
        total_steps=sum(stage.steps for stage in stages),
        state=learner.state,
        restore=learner.restore,
        save_every_sec=config.save_sec,
        log_every_steps=config.log_every,
        quiet=config.quiet,
    ) as training:
        batches = _batches(config, data, stages, world, first_step=training.first_step)
        cut = cuts_when_read(data, config.view_px)
        _train(config, world, training, batches, columns, learner, monitor, cut=cut)
        if world.is_main:
            trained = learner.published(config.export)
            save_encoder(config.out, trained, config=cfg.settings(config), parents=inputs, identity=identity)
            training.finish()
    return produced(config.out, notes=bad_files(data), steps=training.total_steps, folder=str(folder))


def _train(
    config: Config,
    world: World,
    run: Run,
    batches: Batches,
    columns: Columns,
    learner: Learner,
    monitor: Monitor,
    *,
    cut: bool,
) -> None:
    """Take the steps that are left; the body of the loop is a training step. cut: batches hold views, not images."""
    import torch

    from corecli.commands.train_ssl.views import color_views, draw_views
    from corecli.data.order import positions
    from corecli.engine.dist import average_gradients
    from corecli.engine.precision import autocast
    from corecli.engine.progress import Waiting
    from corecli.ssl.parts.method import Batch, split_batch

    draw = partial(
        color_views if cut else draw_views, seed=config.seed, batch_size=config.batch_size, compile=config.compile
    )
    waiting = Waiting(batches)
    for step, (images, rows) in zip(run.steps(), waiting, strict=False):
        places = positions(config.batch_size, rank=world.rank, world_size=world.size, parts=config.accumulate)
        stage, stage_step = learner.enter(step)
        method, optimizer, probe = learner.method.train(), learner.optimizer, learner.probe
        rate = _set_rates(config, optimizer, stage, stage_step)
        views, local_views = draw(stage.views, images, places, step=step)
        known = columns.of(rows, world.device)
        batch = Batch(views=views, local_views=local_views, step=stage_step, total_steps=stage.steps, **known)
        batch_parts = split_batch(batch, config.accumulate)
        torch.manual_seed(derive(config.seed, "dropout", step, world.rank))  # for the branches that a ViT skips
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in batch_parts:
            with autocast(config.precision, world.device):
                loss = method.loss(part)
            (loss / config.accumulate).backward()
            losses.append(loss.detach())
        average_gradients(method.parameters(), world)
        if config.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(method.parameters(), config.clip_grad)
        optimizer.step()
        method.after_step(stage_step, stage.steps)
        values = {"loss": torch.stack(losses).mean(), "lr": torch.tensor(rate)}
        if probe is not None:
            values["probe"] = probe.learn(batch_parts[0].labels)
        run.presented(config.batch_size)
        if run.is_log_step(step):
            measured = monitor.figures(values, stage.views.policies[0])
            run.log(step, {**measured, "data_wait": waiting.share()})


def _set_rates(config: Config, optimizer: torch.optim.Optimizer, stage: TrainStage, step: int) -> float:
    """Set the learning rate and the weight decay for a step of a stage; return the learning rate."""
    from corecli.engine import optim

    rate = schedule.learning_rate(
        step,
        peak=config.lr,
        total_steps=stage.steps,
        warmup_steps=stage.warmup_steps,
        shape=config.schedule,
    )
    optim.set_learning_rate(optimizer, rate)
    if config.weight_decay_end is not None:
        start, end = config.weight_decay, config.weight_decay_end
        optim.set_weight_decay(optimizer, schedule.weight_decay(step, start=start, end=end, total_steps=stage.steps))
    return rate


def _start(
    config: Config, world: World, encoder: Encoder, columns: Columns, stages: Stages, stage: TrainStage
) -> tuple[Method, torch.optim.Optimizer]:
    """Return the method of a stage on the encoder, and a new optimizer. Errors: UsageError, DataError."""
    from corecli.commands.train_ssl.learner import build_method, check_data
    from corecli.nets.batchnorm import synchronize_batchnorm
    from corecli.ssl.parts.method import Context

    context = Context(
        num_views=stage.views.num_global,
        num_local_views=stage.views.num_local,
        batch_size=config.batch_size // config.accumulate,
        num_classes=columns.num_classes,
        target_dim=columns.target_dim,
        steps_per_epoch=stage.epoch.num_images // config.batch_size,
        seed=config.seed,
    )
    with about(config.data):
        method = build_method(stage, encoder, context)
        check_data(method, stage.method, columns, targets_may_idle=len(stages) > 1)
    if config.accumulate > 1 and not method.accumulates:
        raise UsageError(f"--accumulate does not work with {stage.method}, which keeps state of whole batches")
    if config.export == "teacher" and method.teacher is None and stages[-1].method == stage.method:
        raise UsageError(f"{stage.method} has no teacher to export", hint="drop --export")
    method = synchronize_batchnorm(method.to(world.device), world.device)
    return method, _optimizer(config, method)


def _optimizer(config: Config, method: Method) -> torch.optim.Optimizer:
    """Return a new optimizer for a method. Errors: UsageError for --layer-decay on a network that is not a ViT."""
    from corecli.engine import optim
    from corecli.nets.depth import rate_scales
    from corecli.nets.vit import is_vit

    backbone = method.encoder.backbone
    if config.layer_decay != 1 and not is_vit(backbone):
        raise UsageError("--layer-decay needs a vision transformer", hint="drop --layer-decay")
    return optim.build_optimizer(
        config.optimizer,
        method.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        betas=(0.9, config.adam_beta2),
        eta=config.lars_eta,
        clip=config.lars_clip,
        constant_rate=method.constant_rate(),
        rate_scales={} if config.layer_decay == 1 else rate_scales(backbone, config.layer_decay),
    )


def _stages(config: Config, data: ImageSet) -> Stages:
    """Return the stages in turn: those of --stage, or the one of --method and --steps.

    Errors: UsageError; DataError if an epoch does not fill a batch, or there is nothing to pair.
    """
    texts = config.stage or (f"{config.method}:{config.steps}",)
    stages = tuple(_stage(config, text, data) for text in texts)
    check_unused_options(stages, cfg.named_values(config.set), config.synthetic_probability)
    return stages


def _stage(config: Config, text: str, data: ImageSet) -> TrainStage:
    method, length, views = schedule.parse_stage(text)
    registry.check("ssl", method, "method")
    constants = registry.constants("ssl", method)
    shown = read_views(
        views or config.views or constants["VIEWS"],
        augment=config.augment or (constants["AUGMENT"],),
        augment_set=config.augment_set,
        image_px=data.image_size[0],
        view_px=config.view_px,
        local_px=config.local_px,
    )
    with about(config.data):
        epoch = read_epoch(
            data,
            shown.entries,
            batch_size=config.batch_size,
            num_parts=config.accumulate,
            per_group=config.images_per_group,
            guard=config.guard,
        )
    steps_per_epoch = epoch.num_images // config.batch_size
    steps = length.to_steps(steps_per_epoch=steps_per_epoch, batch_size=config.batch_size)
    warmup_steps = min(steps // 10, 10 * steps_per_epoch)
    if config.warmup != "auto":
        warmup = schedule.parse_duration(config.warmup)
        warmup_steps = warmup.to_steps(steps_per_epoch=steps_per_epoch, batch_size=config.batch_size)
    options = {name: value for name, value in cfg.named_values(config.set).items() if name in constants["Options"]}
    stage = TrainStage(method=method, steps=steps, options=options, views=shown, epoch=epoch, warmup_steps=warmup_steps)
    schedule.check_warmup((stage,), warmup_steps)
    with about(config.data):
        check_positives(stage, data.rows)
    return stage


def _batches(config: Config, data: ImageSet, stages: Stages, world: World, *, first_step: int) -> Batches:
    """Yield uint8 images [E, b, 3, H, W], or cut views, and rows [b] of every step from the first.

    Stages have orders of their own.
    """
    from corecli.commands.train_ssl.views import ViewCutter
    from corecli.data.loader import Loader
    from corecli.data.order import Order

    probability = 0.5 if config.synthetic_probability is None else config.synthetic_probability
    stage_start = 0
    for index, stage in enumerate(stages):
        seed = config.seed if index == 0 else derive(config.seed, "stage", index)
        order = Order(
            stage.epoch.slots,
            segments=stage.epoch.segments,
            batch_size=config.batch_size,
            seed=seed,
            total_steps=stage.steps,
            distinct_groups=data.rows.group_ids if config.guard or data.guard else None,
            sets=stage.epoch.sets,
        )
        done = min(first_step, stage.steps)
        loader = Loader(
            data,
            order,
            world=world,
            members=Members(data.rows, stage.views.entries, seed=seed, synthetic_probability=probability),
            workers=num_workers(config.workers),
            first_step=done,
            parts=config.accumulate,
        )
        cutter = ViewCutter(shown=stage.views, seed=config.seed, batch_size=config.batch_size, first_step=stage_start)
        read = loader.views(cutter, data.picture) if cuts_when_read(data, config.view_px) else loader
        yield from ((shown, rows) for _, shown, rows in read)
        first_step -= done
        stage_start += stage.steps
