"""Make images with a trained generator, or with a pipeline of diffusers.

A feature-conditioned generator makes --per-row images for each row of --features; the image of row `dog/0007` and
variant 2 has the key `dog/0007@2` and the group `dog/0007`, so real and synthetic images stay together. Its noise is a
function of the seed, the key and the variant: the same image whatever the batch size, the number of processes, the
rows chosen and the point a killed run resumed from. A table of another encoder than the generator was trained on is
refused (--force accepts it).

--num N makes N images in all, going through the rows in --order as often as it takes.

Unless --sampler names another, a generator of the objectives eps, v and x0 is sampled by ddim, 50 steps (CORE, C.2),
and one of edm or flow by heun, 18 steps, EDM's at levels even in sigma^(1/7) (EDM, Table 1). The set's header and the
output of --json say which it was.

`--ckpt diffusers:PLACE` is a pipeline of diffusers: a folder with a model_index.json, or the id of a repository on the
hub, looked for in the cache of this machine first. Stable Diffusion and other pipelines that take prompts make images
from --captions, whose ids are keys and groups. Image variations, unCLIP and other pipelines that take images make them
from --images, whose keys, groups and labels they keep. Steps, guidance and scheduler are the pipeline's own unless
given: --sampler puts one of diffusers' schedulers in place of it, and --set sets any other argument of the pipeline's
call (noise_level=100; height and width) or of its scheduler (timestep_spacing=trailing). Its weights are in
--precision, its safety checker stays out. Captions that are longer than the tokenizer takes are cut, and a note counts
them. Most pipelines need the extra `text`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import Common, Preset, option
from corecli.base.errors import UsageError
from corecli.base.outcome import Outcome, produced
from corecli.base.target import is_finished
from corecli.commands import _sample_pipeline, _sample_trained

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.engine.dist import World

EXAMPLES = (
    ("One image a row, into samples/", "--ckpt g.pt --features z.safetensors"),
    (
        "CORE's 100K images of CIFAR-10",
        "--ckpt g.pt --features z.safetensors --per-row 2 --sampler ddim --steps 50 --out syn.safetensors",
    ),
    ("From an unconditional generator", "--ckpt g0.pt --num 1024 --out syn"),
    (
        "MixDiff's variations of real images",
        "--ckpt diffusers:sd-image-variations --images DIR --guidance 8 --steps 50 --image-size 256 --out syn",
    ),
    (
        "SynCLR's four images a caption",
        "--ckpt diffusers:stable-diffusion --captions captions.jsonl --per-row 4 --guidance 2.5 --out syn",
    ),
    (
        "GenSSL's ten variations by unCLIP",
        "--ckpt diffusers:unclip-small --images DIR --per-row 10 --sampler ddim --steps 10 "
        "--set timestep_spacing=trailing --set rescale_betas_zero_snr=true --out syn",
    ),
)
PRESETS: dict[str, Preset] = {
    "core-cifar": {"sampler": "ddim", "steps": 50, "eta": 0.0, "per_row": 2},  # CORE C.2: DDIM 50, the set twice
}
SHARD_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli sample`."""

    ckpt: str = option(help="generator file, or diffusers:FOLDER or diffusers:ID", role="input", metavar="FILE|NAME")
    features: Path | None = option(None, help="feature table to condition on", role="input", metavar="FILE")
    captions: Path | None = option(
        None, help="captions for a pipeline: JSON lines with id and caption, or text", role="input", metavar="FILE"
    )
    images: str | None = option(None, help="image set for a pipeline to vary", role="input", metavar="SET")
    out: Path = option(
        Path("samples"),
        help="image set to write: .safetensors, .npz, .tar, else a directory",
        role="output",
        metavar="PATH",
    )
    format: Literal["directory", "packed", "tar", "npz"] | None = option(
        None, help="format of --out, whatever its name", role="runtime"
    )
    per_row: int | None = option(None, help="images a row, or a class (default 1)", minimum=1)
    num: int | None = option(None, help="images in all (default without rows: 64)", minimum=1)
    order: Literal["table", "shuffle", "class-balanced"] = option(
        "table",
        help="order of rows for --num: as in the table, shuffled, or class by class in turn",
    )
    rows: str | None = option(None, help="rows to use: START:STOP:STEP, or numbers such as 0,5,9", metavar="ROWS")
    sampler: str | None = option(
        None,
        help="how to sample; default what fits the generator, or the pipeline's own scheduler",
        choices=lambda: registry.choices("diffusion/samplers"),
    )
    steps: int | None = option(
        None, help="denoising steps (default: the sampler's, ddim 50, heun 18; or the pipeline's)", minimum=1
    )
    eta: float = option(0.0, help="randomness of ddim: 0 none, 1 as ddpm", minimum=0, maximum=1)
    spacing: Literal["even", "inclusive", "log-snr", "karras"] | None = option(
        None, help="which noise levels the steps visit; default the sampler's or the objective's"
    )
    guidance: tuple[float, ...] | None = option(
        None,
        help="classifier-free guidance; several, such as 2,3,8, write one set each; default 1, none, or the pipeline's",
        minimum=0,
    )
    guidance_interval: tuple[float, ...] | None = option(
        None, help="guide at noise levels sigma / alpha above LOW and up to HIGH alone", metavar="LOW,HIGH"
    )
    ema_length: float | None = option(
        None, help="length of the average of the weights, of a run with --ema power, from its snapshots", minimum=0
    )
    negative_prompt: str | None = option(None, help="what a pipeline's images shall not show", metavar="TEXT")
    set: tuple[str, ...] = option(
        (), help="an argument of a pipeline's call or of its scheduler, repeatable", metavar="NAME=VALUE", joined=True
    )
    image_size: int | None = option(
        None, help="resize the shorter side of what is made to this and crop the centre", minimum=1
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        "auto", help="arithmetic of the networks; auto is bf16 on CUDA, else fp32"
    )
    batch_size: int = option(64, help="images at once", role="runtime", minimum=1)

    @property
    def ckpt_path(self) -> Path:
        """The generator file."""
        return Path(self.ckpt)


def check(config: Config) -> dict[str, Any]:
    """What would be written. Errors: as `run`, as far as they show without torch."""
    if config.num is not None and config.per_row is not None:
        raise UsageError("--num and --per-row are two ways to say how many", hint="give one")
    kind = _sample_pipeline.check(config) if _is_pipeline(config) else _sample_trained.check(config)
    return {"conditioned_on": kind, "writes": [str(one.out) for one in _sweep(config)]}


def run(config: Config, world: World) -> Outcome:
    """Sample and publish the set, or one for each guidance. Errors: DataError, UsageError, CannotCreateError."""
    made = [_make_set(one, world) for one in _sweep(config)]
    return Outcome(
        lines=tuple(line for outcome in made for line in outcome.lines),
        records=tuple(record for outcome in made for record in outcome.records),
        notes=tuple(note for outcome in made for note in outcome.notes),
    )


def _is_pipeline(config: Config) -> bool:
    return config.ckpt.startswith(_sample_pipeline.PREFIX)


def _sweep(config: Config) -> list[Config]:
    """The config for each guidance; with several, syn.tar becomes syn-g2.tar and syn-g3.tar."""
    scales = config.guidance or ()
    if len(scales) < 2:
        return [config]
    outs = [config.out.with_name(f"{config.out.stem}-g{scale:g}{config.out.suffix}") for scale in scales]
    return [replace(config, guidance=(scale,), out=out) for scale, out in zip(scales, outs, strict=True)]


def _make_set(config: Config, world: World) -> Outcome:
    """Sample, shard by shard, and publish the set."""
    from corecli.data.imageset import write_set
    from corecli.engine.run import clear_work, open_folder
    from corecli.engine.shards import Shards

    source = _sample_pipeline.Pipelines(config) if _is_pipeline(config) else _sample_trained.Trained(config)
    rows = source.plan.rows
    identity = cfg.identity(config, source.inputs)
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return produced(config.out, notes=("already there, left alone",), num=len(rows))
    ready = source.prepare(world)
    folder = open_folder(config.out, identity, world, force=config.force)

    def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        return ({"images": _resized(images, config.image_size)} for images in ready.make(batches))

    with Shards(folder, num_rows=len(rows), shard_size=SHARD_ROWS, world=world) as shards:
        shards.compute(make, label="sample", batch_size=config.batch_size, quiet=config.quiet)
        if world.is_main:
            header = {"config": cfg.settings(config), "identity": identity, "parents": source.inputs}
            header["sampler"] = ready.sampler
            chunks = (shard["images"] for shard in shards.read())
            write_set(config.out, rows, chunks, class_names=source.class_names, header=header, format=config.format)
    guidance = config.guidance[0] if config.guidance else None
    return produced(config.out, notes=ready.notes, num=len(rows), sampler=ready.sampler, guidance=guidance)


def _resized(images: torch.Tensor, size_px: int | None) -> torch.Tensor:
    """Images uint8 [B, 3, H, W], their central squares as [B, 3, size_px, size_px], antialiased."""
    if size_px is None or tuple(images.shape[-2:]) == (size_px, size_px):
        return images
    import torch

    from corecli.data.resample import resized_crop

    height, width = images.shape[-2:]
    side = min(height, width)
    box = np.array([(height - side) // 2, (width - side) // 2, side, side], dtype=np.int64)
    boxes, unflipped = np.tile(box, (len(images), 1)), np.zeros(len(images), dtype=bool)
    return (resized_crop(images, boxes, unflipped, (size_px, size_px)) * 255).round().to(torch.uint8)
