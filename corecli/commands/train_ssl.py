"""Train an image encoder.

Methods are self-supervised (simclr), supervised (supervised) or pseudo-supervised (psl, CORE Eq. 7: the projector's
output is drawn to the feature row an image was made from). The data may be a mixture of real and synthetic images
(G2R). Budgets are steps, so that training costs compare; --stage trains several methods in turn, each with its own
warm-up and schedule, as CORE's PSL-10K + G2R.

Logged on the way: the loss, the accuracy of an online linear probe on detached features of augmented images (where
labels are known; it only watches), and the k-NN accuracy and effective rank of a fixed subset of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import Preset, option
from corecli.base.errors import DataError
from corecli.base.outcome import Outcome, produced
from corecli.base.target import is_finished
from corecli.commands import _inputs

if TYPE_CHECKING:
    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World
    from corecli.engine.schedule import Stage
    from corecli.nets.encoder import Encoder

EXAMPLES = (
    ("A light SimCLR encoder", "--data DIR --method simclr --backbone resnet18 --steps 1000 --out f.safetensors"),
    (
        "G2R: retrain on real and synthetic images, weakly augmented",
        "--data mix.json --augment weak --steps 1000 --out f2.safetensors",
    ),
    (
        "G2R after 10,000 steps of PSL",
        "--data mix.json --features z.safetensors --stage psl:10000 --stage simclr:90000 --out f2.safetensors",
    ),
)

# CORE Table 9, column CF-10/100. Its temperature, 0.2, is simclr's default, so that the preset serves other methods
# too; LARS's eta and clip, which it does not state, and the warm-up are those of solo-learn's CIFAR recipe.
_SIMCLR_CIFAR: dict[str, Any] = {
    "method": "simclr",
    "backbone": "resnet50",
    "stem": "cifar",
    "projector_hidden": 2048,
    "projector_dim": 128,
    "optimizer": "lars",
    "weight_decay": 1e-4,
    "batch_size": 512,
    "lr": 0.4,
    "augment": ("strong",),
    "warmup": "10ep",
    "steps": 100_000,  # CORE trains for 100K steps (section 4.2, Figure 3)
}
PRESETS: dict[str, Preset] = {
    "simclr-cifar": _SIMCLR_CIFAR,
    # G2R: the same training on the mixture with the milder augmentation of CORE Table 12; `inflate` sets its N = 2.
    "core-cifar": {**_SIMCLR_CIFAR, "augment": ("weak",)},
    # The smallest encoder that reads 8- to 32-pixel images within a minute of one CPU core.
    "tiny": {
        "method": "simclr",
        "backbone": "resnet10-tiny",
        "projector_hidden": 128,
        "projector_dim": 64,
        "optimizer": "adamw",
        "weight_decay": 1e-4,
        "batch_size": 128,
        "lr": 2e-3,
        "steps": 500,
    },
}


AUGMENTATIONS = ("strong", "weak", "crop", "flip", "none")  # of data.augment, told without torch


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli train-ssl`."""

    data: str = option(help="image set or mixture to learn from", role="input", metavar="SET")
    out: Path = option(help="encoder to write, .safetensors or .pt", role="output", metavar="FILE")
    method: str = option("simclr", help="what to learn by", choices=lambda: registry.choices("ssl"))
    stage: tuple[str, ...] = option(
        (), help="METHOD:LENGTH, repeatable; replaces --method and --steps", metavar="METHOD:LENGTH"
    )
    features: Path | None = option(None, help="feature table with the targets of psl", role="input", metavar="FILE")
    init: str | None = option(
        None, help="start from this encoder, with its backbone, stem and projector", role="input", metavar="FILE|NAME"
    )
    backbone: str = option("resnet18", help="network: resnet18, resnet34, resnet50, resnet10-tiny or timm:NAME")
    stem: Literal["auto", "cifar", "imagenet"] = option(
        "auto", help="first layers; auto is cifar up to 64 pixels, else imagenet"
    )
    projector_hidden: int = option(2048, help="width of the projector", minimum=1)
    projector_dim: int = option(128, help="dimension of the projector's output", minimum=1)
    augment: tuple[str, ...] = option(
        ("strong",),
        help="augmentation of the views, repeatable; the last one serves the views that remain",
        choices=AUGMENTATIONS,
    )
    steps: int = option(10_000, help="optimizer steps", minimum=1)
    batch_size: int = option(256, help="images a step, over all processes", minimum=1)
    optimizer: Literal["lars", "sgd", "adamw"] = option("lars", help="optimizer")
    lr: float = option(0.4, help="peak learning rate, as it is: not scaled by the batch", minimum=0)
    weight_decay: float = option(1e-4, help="weight decay, of weights but not of biases and norms", minimum=0)
    momentum: float = option(0.9, help="momentum of lars and sgd", minimum=0, maximum=1)
    lars_eta: float = option(0.02, help="trust coefficient of lars", minimum=0)
    lars_clip: bool = option(True, help="cap the rate of lars at --lr (LARC)")
    schedule: Literal["cosine", "constant"] = option("cosine", help="learning rate after the warm-up")
    warmup: str = option(
        "auto", help="linear warm-up: 500, 10ep or 100k images; auto is a tenth of a stage, at most 10 epochs"
    )
    temperature: float | None = option(None, help="temperature of the contrastive loss", minimum=1e-6)
    views: int | None = option(None, help="views of psl: 1 is cheaper, 2 is CORE's Eq. 7", minimum=1, maximum=2)
    guard: bool = option(False, help="at most one member of a group in a batch")
    compile: bool = option(False, help="compile the augmentation, where there is a C++ compiler")
    log_every: int = option(50, help="steps between logged values", role="runtime", minimum=1)
    save_sec: float = option(60.0, help="seconds between saved states", role="runtime", minimum=0)


def check(config: Config) -> dict[str, Any]:
    """What would be read and written. Errors: as `run`, as far as they show without torch."""
    _inputs.check_file(config.out)
    data = _inputs.open_images(config.data, config)
    if config.init is not None:
        _inputs.check_encoder(config.init)
    if config.features is not None:
        _inputs.check_header(config.features, "features")
    _inputs.check_batch(data, config.data, config.batch_size)
    stages = stages_of(config, data)
    plan = ", ".join(f"{s.method} for {s.steps} steps" for s in stages)
    return {"num": len(data.rows), "slots": len(data.slots), "plan": plan, "out": str(config.out)}


def stages_of(config: Config, data: ImageSet) -> tuple[Stage, ...]:
    """The methods to train in turn, with their steps. Errors: UsageError."""
    from corecli.engine.schedule import Stage, parse_stage

    if not config.stage:
        return (Stage(method=config.method, steps=config.steps),)
    epoch = len(data.slots) // config.batch_size
    stages = []
    for text in config.stage:
        method, length = parse_stage(text)
        registry.check("ssl", method, "method")
        steps = length.to_steps(steps_per_epoch=epoch, batch_size=config.batch_size)
        stages.append(Stage(method=method, steps=steps))
    return tuple(stages)


def run(config: Config, world: World) -> Outcome:
    """Train, stage by stage, and publish the encoder. Errors: DataError, CannotCreateError, InterruptedAfterSaving."""
    from corecli.commands._learner import Learner
    from corecli.data.loader import Loader
    from corecli.data.memory import keep_freed_memory
    from corecli.data.order import Order
    from corecli.engine.run import Run, clear_work, open_folder
    from corecli.nets.encoder import save_encoder

    keep_freed_memory()
    data = _inputs.open_images(config.data, config)
    table, encoder = _inputs.load_table(config.features), _encoder(config, data)
    inputs = {"data": data.fingerprint, "features": table.header["fingerprint"] if table else None}
    identity = cfg.identity(config, {**inputs, "init": encoder.fingerprint if config.init else None})
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return produced(config.out, notes=("already there, left alone",))
    stages = stages_of(config, data)
    total_steps = sum(stage.steps for stage in stages)
    learner = Learner(config, encoder, data, table, stages=stages, world=world)
    order = Order(
        data.slots,
        stages=data.stages,
        batch_size=config.batch_size,
        seed=config.seed,
        total_steps=total_steps,
        distinct_groups=data.rows.group_ids if config.guard or data.guard else None,
    )
    folder = open_folder(config.out, identity, world, force=config.force)
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
        workers = _inputs.num_workers(config.workers)
        loader = Loader(data, order, world=world, workers=workers, first_step=steps.first_step)
        for step, (_, images, rows) in zip(steps.steps(), loader, strict=False):
            learned = learner.learn(step, images, rows)
            steps.presented(config.batch_size)
            if steps.is_log_step(step):
                steps.log(step, learner.figures(learned))
        if world.is_main:
            save_encoder(config.out, learner.encoder, config=cfg.settings(config), parents=inputs, identity=identity)
            steps.finish()
    return produced(config.out, notes=_inputs.bad_files(data), steps=total_steps, folder=str(folder))


def _encoder(config: Config, data: ImageSet) -> Encoder:
    """A new encoder with weights drawn from the seed, or the one of --init."""
    from corecli.nets.encoder import build_encoder, load_encoder

    if config.init is not None:
        return load_encoder(config.init)
    height, width = data.image_size
    if height != width:
        raise DataError(f"images of {width} x {height} are not square", where=config.data, hint="give --image-size")
    return build_encoder(
        config.backbone,
        image_size=height,
        stem=None if config.stem == "auto" else config.stem,
        projector_hidden=config.projector_hidden,
        projector_dim=config.projector_dim,
        seed=config.seed,
    )
