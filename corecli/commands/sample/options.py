"""Generate images with a trained generator, or with a pipeline of diffusers.

--ckpt is a file written by train-gen, or the folder of its --export-diffusers. A generator conditioned on features
makes --per-row images for each row of --features. The image of row `dog/0007` and variant 2 has the key `dog/0007@2`
and the group `dog/0007`, so real and synthetic images stay together. The table must come from the encoder that the
generator was trained with (--force accepts another). A generator conditioned on captions makes images from --captions,
whose ids become keys and groups, with the text encoder of its training. A generator conditioned on labels makes
--per-row images of each class.

The noise of an image is a function of the seed and the image's key. An image is therefore the same for every batch
size, number of processes and choice of rows, and after a killed run resumes. Sums may be rounded differently in batches
of another size; then about one pixel in tens of thousands differs by one level. --rows selects some rows: `--rows
::1000` with another --out repeats one row in a thousand, as a check. --num N makes N images in all and goes through the
rows in --order as often as needed.

--sampler chooses how noise becomes an image, --steps the number of steps, and --spacing the noise levels they visit.
The default for the objectives eps, v and x0 is ddim with 50 steps (CORE, C.2), and for edm and flow heun with 18 steps;
edm spaces its levels evenly in sigma^(1/7) (EDM, Table 1). Samplers have options of their own, which --set changes:
`--sampler edm-churn --set s-churn=80`. The section SAMPLERS lists them. The header of the set and the output of --json
record the sampler.

The samplers dpm2, dpmpp-2s-ancestral, dpmpp-sde and edm-churn choose noise levels between those of the list. On eps, v
and x0 the network then sees a fractional timestep, interpolated linearly in log sigma between trained timesteps and not
rounded; levels beyond the first or last timestep use that timestep. On flow, which starts at pure noise, they make the
first step by Euler's method.

--shards N writes --out as a directory of N tar files (or packed or npz files, by --format), for sets of millions of
images. Each shard is a set of its own (WebDataset reads tar shards), and the directory opens as all of them together.
part-000003.json describes one shard: number of images, number of images of a single color, mean and standard deviation
of red, green and blue, and the sha256 of the file. manifest.json is written last and collects them. Each process makes
whole shards.

`--shard I/N` makes shard I alone, counted from 0, into the same --out. A SLURM array with `#SBATCH --array=0-15` runs
`corecli sample ... --shard $SLURM_ARRAY_TASK_ID/16 --out syn`. The jobs share only that directory and may run in any
order; the last one to finish completes it. The images are those of a run without shards. Finished shards are left
alone, so any line can be run again, and `--shards 16` makes the missing ones.

--encoder computes the cosine similarity between the features of each image and the row it was made from, or the source
image of --images. The set stores it in the column `similarity`, and --min-similarity leaves out images below a value.
Keys and noise do not change, so the kept images are the same as without it. The encoder must be that of the table
(--force accepts another).

`--ckpt diffusers:PLACE` samples from a pipeline of diffusers: a folder with a model_index.json, or the id of a hub
repository in the local cache. Stable Diffusion and other pipelines that take prompts make images from --captions. Image
variations, unCLIP and other pipelines that take images make them from --images and keep its keys, groups and labels.
Steps, guidance and scheduler are the pipeline's own by default. --sampler replaces the scheduler by diffusers'
scheduler of the same method, and --set changes any other argument of the pipeline's call (noise_level=100, height,
width) or of its scheduler (timestep_spacing=trailing). Safety checkers are not loaded. Captions that are too long for
the tokenizer are cut, and a note counts them. Most pipelines need the extra `text`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import registry
from corecli.base.config import Common, Preset, option
from corecli.data.imageset import writable_formats
from corecli.diffusion import objectives, samplers

SUMMARY = "generate images with a trained generator"
PLACE = 3
PREFIX = "diffusers:"  # in --ckpt, before the folder or id of a pipeline
EXAMPLES = (
    ("One image per row, into samples/", "--ckpt g.pt --features z.safetensors"),
    (
        "CORE's 100K images of CIFAR-10",
        "--ckpt g.pt --features z.safetensors --per-row 2 --sampler ddim --steps 50 --out syn.safetensors",
    ),
    ("Four images per caption", "--ckpt g.pt --captions captions.jsonl --per-row 4 --guidance 2"),
    ("From an unconditional generator", "--ckpt g0.pt --num 1024 --out syn"),
    (
        "The third of sixteen jobs that write one set",
        "--ckpt g.pt --features z.safetensors --per-row 10 --shard 2/16 --out syn",
    ),
    (
        "Leave out images that do not resemble their row",
        "--ckpt g.pt --features z.safetensors --encoder f.safetensors --min-similarity 0.5 --out syn.safetensors",
    ),
    (
        "Variations of real images, as in MixDiff",
        "--ckpt diffusers:sd-image-variations --images DIR --guidance 8 --steps 50 --image-size 256 --out syn",
    ),
    (
        "Four images per caption by Stable Diffusion, as in SynCLR",
        "--ckpt diffusers:stable-diffusion --captions captions.jsonl --per-row 4 --guidance 2.5 --out syn",
    ),
    (
        "Ten variations per image by unCLIP, as in GenSSL",
        "--ckpt diffusers:unclip-small --images DIR --per-row 10 --sampler ddim --steps 10 "
        "--set timestep_spacing=trailing --set rescale_betas_zero_snr=true --out syn",
    ),
)
PRESETS: dict[str, Preset] = {
    # CORE C.2: DDIM with 50 steps, two images per row.
    "core-cifar": {"sampler": "ddim", "steps": 50, "eta": 0.0, "per_row": 2},
}


def _default_samplers(_: str) -> str:
    """Return the default sampler of each objective, as help shows it."""
    users: dict[str, list[str]] = {}
    for objective in registry.choices(objectives.FOLDER):
        users.setdefault(objectives.default_sampler(objective), []).append(objective)
    return "default " + "; ".join(f"{sampler} for {', '.join(names)}" for sampler, names in users.items())


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli sample`."""

    ckpt: str = option(
        help="generator file or exported folder; or diffusers:FOLDER, diffusers:ID", role="input", metavar="FILE|NAME"
    )
    features: Path | None = option(None, help="feature table to condition on", role="input", metavar="FILE")
    captions: Path | None = option(
        None,
        help="captions to generate images from: JSON lines with id and caption, or text",
        role="input",
        metavar="FILE",
    )
    text_encoder: str | None = option(
        None,
        help="path or hub id of the generator's text encoder (default: as recorded in training)",
        role="input",
        metavar="DIR|ID",
    )
    images: str | None = option(None, help="image set that a pipeline varies", role="input", metavar="SET")
    out: Path = option(
        Path("samples"),
        help="image set to write: .safetensors, .npz, .tar, or a directory",
        role="output",
        metavar="PATH",
    )
    format: str | None = option(
        None,
        help="format of --out, or of its shards (default: by the suffix of --out; shards are tar)",
        role="runtime",
        choices=writable_formats,
    )
    per_row: int | None = option(None, help="images per row or class (default: 1)", minimum=1)
    num: int | None = option(
        None, help="total number of images (default: by --per-row; 64 if there are no rows)", minimum=1
    )
    order: Literal["table", "shuffle", "class-balanced"] = option(
        "table",
        help="order of rows for --num: as in the table, shuffled, or alternating between classes",
    )
    rows: str | None = option(None, help="rows to use: START:STOP:STEP, or indices such as 0,5,9", metavar="ROWS")
    sampler: str | None = option(
        None,
        help="sampler; for a pipeline, its scheduler by default",
        choices=lambda: registry.choices(samplers.FOLDER),
        suffix=_default_samplers,
    )
    steps: int | None = option(
        None, help="denoising steps (default: the sampler's, such as 50 for ddim; or the pipeline's)", minimum=1
    )
    eta: float = option(0.0, help="noise that ddim adds, from 0 (none) to 1 (as much as ddpm)", minimum=0, maximum=1)
    spacing: Literal["even", "inclusive", "log-snr", "karras"] | None = option(
        None, help="spacing of the noise levels (default: the objective's, or the sampler's)"
    )
    guidance: tuple[float, ...] | None = option(
        None,
        help="classifier-free guidance; 2,3,8 writes a set for each (default: 1, or the pipeline's)",
        minimum=0,
    )
    guidance_interval: tuple[float, ...] | None = option(
        None, help="use guidance only at noise levels sigma / alpha in (LOW, HIGH]", metavar="LOW,HIGH"
    )
    ema_length: float | None = option(
        None, help="length of the weight average, for generators trained with --ema power", minimum=0
    )
    negative_prompt: str | None = option(
        None, help="prompt for what the images of a pipeline should not show", metavar="TEXT"
    )
    set: tuple[str, ...] = option(
        (),
        help="option of the sampler, or argument of a pipeline or its scheduler; repeatable",
        metavar="NAME=VALUE",
        joined=True,
    )
    image_size: int | None = option(None, help="resize the shorter side to N px and crop the center", minimum=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        "auto", help="precision of networks; auto is bf16 on CUDA, else fp32"
    )
    encoder: str | None = option(
        None,
        help="encoder that compares each image with its row or source image",
        role="input",
        metavar="FILE|NAME",
    )
    min_similarity: float | None = option(
        None, help="leave out images with a lower cosine similarity; needs --encoder", minimum=-1, maximum=1
    )
    shards: int | None = option(
        None, help="write a directory with this many shards, each an image set of its own", role="runtime", minimum=1
    )
    shard: str | None = option(
        None, help="make only shard I of N, counted from 0, as one job of an array", role="runtime", metavar="I/N"
    )
    batch_size: int = option(64, help="images per forward pass", role="runtime", minimum=1)

    @property
    def ckpt_path(self) -> Path:
        """Return the path of the generator's file or folder."""
        return Path(self.ckpt.removeprefix(PREFIX))


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the tables of the man page."""
    names = registry.choices(samplers.FOLDER)
    return {"SAMPLERS": tuple((name, _described(registry.constants(samplers.FOLDER, name))) for name in names)}


def _described(sampler: dict[str, Any]) -> str:
    parts = [f"Steps: {sampler['DEFAULT_STEPS']}; spacing: {sampler['SPACING']}"]
    if options := ", ".join(f"--set {name}={default:g}" for name, default in sampler["Options"].items()):
        parts += [f"options: {options}"]
    if scheduler := sampler.get("DIFFUSERS"):
        parts += [f"in pipelines: {scheduler}"]
    return f"{sampler['title']} {'; '.join(parts)}."
