"""Train an image generator, on features (R2G), on labels, on captions or on nothing.

With --features every image is generated from the features of its own table row (CORE, Eq. 2): rows are joined to
images by key, and a synthetic image takes the row of the image it was made from. The table's encoder is recorded, and
`sample` refuses a table of another one.

With --captions every image is generated from its caption: a caption's id is the image's key, or its group, as in a set
that was sampled from captions; other images take one of the captions of their class, which one being a function of the
key. Captions are read as bytes, by a small transformer that learns with the generator; or by a frozen text encoder of
transformers, CLIP's, T5's or another: a folder with its tokenizer, a pipeline's folder with both, or the id of a
repository on the hub, looked for in the cache of this machine first (extra `text`). It embeds the different captions
once, is recorded, and `sample` refuses another. adm and dit are told one vector, ldm attends to every byte or token.
Captions longer than --caption-length are cut, and a note counts them.

--export-diffusers writes an adm or ldm generator of the objectives eps, v and x0 as a folder of diffusers too, also of
a target that is there already. unet/, scheduler/ and vae/ or vqvae/ load there by from_pretrained. diffusers has no
place for the map from features, labels or captions to the vector that joins the time embedding, nor for the header:
they are in corecli.safetensors beside these. A generator of pixels that is told nothing has a model_index.json and runs
as a pipeline there, with its images to 1/255 when called with use_clipped_model_output=True. `sample --ckpt DIR` reads
the folder back.

The target holds the exponential moving average of the weights. Progress, a log and grids of fixed seeds are in the
run folder, OUT.d/; a killed run continues when the same line is run again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import option
from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.base.outcome import Outcome, produced
from corecli.base.target import is_finished
from corecli.commands import _captions, _inputs
from corecli.commands._gen_presets import PRESETS as PRESETS
from corecli.nets import pipeline_files
from corecli.nets.text_files import find_text_encoder

if TYPE_CHECKING:
    from corecli.commands._captions import Captioned
    from corecli.data.imageset import ImageSet
    from corecli.engine.dist import World
    from corecli.nets.autoencoder import FirstStage

PARTS = "generators"  # whose options --set gives
EXAMPLES = (
    ("R2G: a generator conditioned on features", "--data DIR --features z.safetensors --steps 1000 --out g.pt"),
    ("A generator that is told captions", "--data DIR --captions captions.jsonl --steps 1000 --out g.pt"),
    ("The unconditional baseline", "--data DIR --steps 1000 --out g0.pt"),
    (
        "CORE's ADM on CIFAR-10",
        "--preset adm-cifar --data torchvision:CIFAR10:train --features z.safetensors --out g.pt",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(_inputs.ReadsImages):
    """Options of `corecli train-gen`."""

    data: str = option(help="image set or mixture to learn", role="input", metavar="SET")
    features: Path | None = option(None, help="feature table to condition on", role="input", metavar="FILE")
    captions: Path | None = option(
        None, help="captions of the images: JSON lines with id and caption, or text", role="input", metavar="FILE"
    )
    text_encoder: str | None = option(
        None,
        help="frozen encoder that reads --captions; default a small one of bytes, trained along",
        role="input",
        metavar="DIR|ID",
    )
    caption_length: int | None = option(
        None, help="longest caption, in bytes (default 256) or tokens (default all the encoder takes)", minimum=1
    )
    out: Path = option(help="generator to write, .safetensors or .pt", role="output", metavar="FILE")
    export_diffusers: Path | None = option(
        None, help="write it in diffusers' folder layout as well", role="output", metavar="DIR"
    )
    arch: str = option("adm", help="generator family", choices=lambda: registry.choices("generators"))
    first_stage: str | None = option(
        None,
        help="autoencoder in whose latents ldm and dit work: a file of --arch autoencoder, or of diffusers",
        role="input",
        metavar="FILE|DIR|ID",
    )
    latent_scale: Literal["auto", "published", "measured"] | None = option(
        None, help="what brings latents to unit scale; default the first stage's published numbers, or measured ones"
    )
    condition: Literal["auto", "none", "features", "labels", "captions"] = option(
        "auto",
        help="what the generator is told; auto is features with --features, captions with --captions, else none",
    )
    steps: int = option(10_000, help="optimizer steps", minimum=1)
    batch_size: int = option(128, help="images a step, over all processes", minimum=1)
    lr: float = option(1e-4, help="learning rate of AdamW, constant", minimum=0)
    weight_decay: float = option(0.0, help="weight decay of AdamW", minimum=0)
    clip: float | None = option(None, help="largest gradient norm, 0 for any; default 1, for icgan 0", minimum=0)
    ema: Literal["exponential", "power"] = option(
        "exponential", help="moving average of the weights; of power ones, sample --ema-length chooses afterwards"
    )
    ema_decay: float = option(0.9999, help="decay of the exponential average", minimum=0, maximum=1)
    ema_snapshots: int = option(32, help="snapshots of power averages kept over the run", role="runtime", minimum=1)
    set: tuple[str, ...] = option(
        (), help="an option of the family, repeatable, such as channels=64", metavar="NAME=VALUE", joined=True
    )
    objective: Literal["eps", "v", "x0", "edm", "flow"] | None = option(
        None, help="what the network learns: noise, velocity or image of the noising process, EDM's or a rectified flow"
    )
    learn_sigma: bool | None = option(None, help="learn the variance too, with the hybrid loss; default with eps")
    min_snr: float | None = option(
        None, help="gamma of min-SNR weighting for eps, v and x0; default 0, none", minimum=0
    )
    flow_times: Literal["uniform", "logit-normal"] | None = option(None, help="how a flow draws its times")
    schedule: Literal["linear", "cosine", "scaled_linear"] | None = option(None, help="noise schedule")
    diffusion_steps: int | None = option(None, help="steps of the noising process", minimum=2)
    flip: bool | None = option(None, help="mirror half of the images; default yes")
    condition_dropout: float | None = option(
        None, help="share of images trained without their condition, for guidance", minimum=0, maximum=1
    )
    feature_normalization: Literal["none", "per-sample", "l2"] | None = option(
        None, help="normalisation of a feature row; default per-sample, for icgan l2"
    )
    feature_noise: float | None = option(
        None, help="noise added to normalised features in training, against near copies", minimum=0
    )
    preview_every: int = option(1000, help="steps between preview grids, 0 for none", role="runtime", minimum=0)
    log_every: int = option(50, help="steps between logged values", role="runtime", minimum=1)
    save_sec: float = option(60.0, help="seconds between saved states", role="runtime", minimum=0)


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """What the manual page says of the families."""
    return {"FAMILIES": tuple((n, _described(registry.constants(PARTS, n))) for n in registry.choices(PARTS))}


def _described(told: dict[str, Any]) -> str:
    options = (f"--set {name}={_shown(default)}" for name, default in told["Options"].items())
    return f"{told['title']} {', '.join(options)}."


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def check(config: Config) -> dict[str, Any]:
    """What would be read and written. Errors: as `run`, as far as they show without torch."""
    _inputs.check_file(config.out)
    data = _inputs.open_images(config.data, config)
    condition = condition_of(config)
    if condition == "labels" and not data.class_names:
        raise DataError("has no labels", where=config.data, hint="--condition labels needs class sub-folders")
    if config.features is not None:
        _inputs.check_header(config.features, "features")
    if config.captions is not None:
        _captions.of_images(config.captions, data.rows, data.class_names)
        _captions.check_encoder(config.text_encoder)
    _inputs.check_batch(data, config.data, config.batch_size)
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
    pipeline_files.refuse_others(folder)
    if "DIFFUSERS" not in family or config.objective in ("edm", "flow"):
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
    from corecli.nets.autoencoder_files import load_first_stage

    return load_first_stage(config.first_stage, image_size=data.image_size[0])


def _captioned(config: Config, data: ImageSet) -> Captioned | None:
    """The captions of --captions. Errors: DataError, and as `text_files.find_text_encoder`."""
    if config.captions is None:
        return None
    texts = _captions.of_images(config.captions, data.rows, data.class_names)
    folder = None if config.text_encoder is None else find_text_encoder(config.text_encoder)
    return _captions.captioned(config.captions, texts, folder=folder)


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
    from corecli.commands._gen_trainer import GenTrainer
    from corecli.data.loader import Loader
    from corecli.data.order import Order
    from corecli.engine.run import Run, clear_work, open_folder

    data = _inputs.open_images(config.data, config)
    table, stage = _inputs.load_table(config.features), _first_stage(config, data)
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
        stages=data.stages,
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
        workers = _inputs.num_workers(config.workers)
        loader = Loader(
            shown, order, world=world, members=trainer.neighbours, workers=workers, first_step=steps.first_step
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
    notes = (*_inputs.bad_files(data), *trainer.notes)
    return _exported(config, produced(config.out, notes=notes, steps=config.steps, folder=str(folder)), world)


def _exported(config: Config, outcome: Outcome, world: World) -> Outcome:
    """The outcome with the folder of --export-diffusers, which holds the target's generator."""
    if config.export_diffusers is None:
        return outcome
    from corecli.base import checkpoint
    from corecli.generators._folders import write_folder

    if world.is_main:
        write_folder(config.export_diffusers, *checkpoint.load(config.out, kind="generator"))
    return replace(outcome, lines=(*outcome.lines, str(config.export_diffusers)))
