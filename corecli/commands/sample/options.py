"""Make images with a trained generator, or with a pipeline of diffusers.

A feature-conditioned generator makes --per-row images for each row of --features; the image of row `dog/0007` and
variant 2 has the key `dog/0007@2` and the group `dog/0007`, so real and synthetic images stay together. Its noise is a
function of the seed, the key and the variant: the same image whatever the batch size, the number of processes, the
rows chosen and the point a killed run resumed from. A table of another encoder than the generator was trained on is
refused (--force accepts it).

A generator that was trained on captions makes images from --captions, whose ids are keys and groups. Where a frozen
text encoder read them in training, it reads them here; another one is refused.

--num N makes N images in all, going through the rows in --order as often as it takes. --rows makes those of some rows
alone, the same as in the whole set: `--rows ::1000` into another --out is a check of one row in a thousand. Where
batches are of other sizes, sums may be rounded otherwise: a pixel in tens of thousands is then off by one level.

--shards N writes OUT as a directory of N tar files (--format packed or npz: files of those), for sets of millions. Each
is a set of its own, a tar one as WebDataset reads them; OUT opens as all of them together. Beside each lies
part-000003.json with its number of images, how many are of one color alone, mean and std of red, green and blue, and
the file's sha256; manifest.json, written last, collects them. Processes take whole shards in turn. `--shard I/N` makes
shard I alone, numbered from 0, into the same OUT: for a job array of SLURM, `#SBATCH --array=0-15` and
`corecli sample ... --shard $SLURM_ARRAY_TASK_ID/16 --out syn`. The jobs share no more than that directory and run in
any order, and whichever ends last completes it. The images are those of one job without shards. A shard that is there
is left alone, so any line can be run again, and `--shards 16` afterwards makes what is missing.

--encoder measures the cosine similarity of each image, encoded as the table's rows were, to the row it is made from; of
a pipeline's, to the image of --images. The set keeps it as its column `similarity`, and --min-similarity leaves out
what is below; keys and noise stay, so that what is kept is the same without it. The encoder has to be the table's
(--force accepts another).

Unless --sampler names another, a generator of the objectives eps, v and x0 is sampled by ddim, 50 steps (CORE, C.2),
and one of edm or flow by heun, 18 steps, EDM's at levels even in sigma^(1/7) (EDM, Table 1). The set's header and the
output of --json say which it was.

--ckpt is a file of `train-gen`, or the folder of its --export-diffusers, which makes the same images.
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

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from corecli.base import registry
from corecli.base.config import Common, Preset, option
from corecli.data.imageset import writable_formats

if TYPE_CHECKING:
    pass

SUMMARY = "make images with a trained generator"
PLACE = 3
PREFIX = "diffusers:"  # of --ckpt, before the folder or id of a pipeline
EXAMPLES = (
    ("One image a row, into samples/", "--ckpt g.pt --features z.safetensors"),
    (
        "CORE's 100K images of CIFAR-10",
        "--ckpt g.pt --features z.safetensors --per-row 2 --sampler ddim --steps 50 --out syn.safetensors",
    ),
    ("Four images a caption", "--ckpt g.pt --captions captions.jsonl --per-row 4 --guidance 2"),
    ("From an unconditional generator", "--ckpt g0.pt --num 1024 --out syn"),
    (
        "The third of sixteen jobs that make one set",
        "--ckpt g.pt --features z.safetensors --per-row 10 --shard 2/16 --out syn",
    ),
    (
        "Without pairs that went wrong",
        "--ckpt g.pt --features z.safetensors --encoder f.safetensors --min-similarity 0.5 --out syn.safetensors",
    ),
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


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli sample`."""

    ckpt: str = option(
        help="generator file or exported folder, or diffusers:FOLDER or diffusers:ID", role="input", metavar="FILE|NAME"
    )
    features: Path | None = option(None, help="feature table to condition on", role="input", metavar="FILE")
    captions: Path | None = option(
        None, help="captions to make images of: JSON lines with id and caption, or text", role="input", metavar="FILE"
    )
    text_encoder: str | None = option(
        None,
        help="where the frozen text encoder is that the generator was trained with; default where it was then",
        role="input",
        metavar="DIR|ID",
    )
    images: str | None = option(None, help="image set for a pipeline to vary", role="input", metavar="SET")
    out: Path = option(
        Path("samples"),
        help="image set to write: .safetensors, .npz, .tar, else a directory",
        role="output",
        metavar="PATH",
    )
    format: str | None = option(
        None,
        help="format of --out, or of its shards (default: by the suffix of --out; shards are tar)",
        role="runtime",
        choices=writable_formats,
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
        None, help="resize the shorter side of what is made to this and crop the center", minimum=1
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        "auto", help="arithmetic of the networks; auto is bf16 on CUDA, else fp32"
    )
    encoder: str | None = option(
        None,
        help="measure each image's cosine similarity to its row of the table, or to its source, in this encoder",
        role="input",
        metavar="FILE|NAME",
    )
    min_similarity: float | None = option(
        None, help="leave out images less similar than this; needs --encoder", minimum=-1, maximum=1
    )
    shards: int | None = option(
        None, help="write a directory of this many shards, each a set of its own", role="runtime", minimum=1
    )
    shard: str | None = option(
        None, help="make shard I of N alone, counted from 0: one job of an array", role="runtime", metavar="I/N"
    )
    batch_size: int = option(64, help="images at once", role="runtime", minimum=1)

    @property
    def ckpt_path(self) -> Path:
        """The generator's file, or its folder in diffusers' layout."""
        return Path(self.ckpt.removeprefix(PREFIX))
