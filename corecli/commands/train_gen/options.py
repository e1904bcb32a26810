"""Train an image generator that is conditioned on features (R2G), labels, captions or nothing.

With --features, every image is generated from its own row of a feature table (CORE, Eq. 2). Rows are joined to images
by key; a synthetic image uses the row of the image that it was made from. The file records the table's encoder, and
`sample` refuses a table of another encoder.

With --captions, every image is generated from its caption. The id of a caption is the key of its image, or its group,
as in sets that were sampled from captions. Any other image takes one of the captions of its class, chosen by its key.
By default, a small transformer that is trained with the generator reads captions as bytes. --text-encoder replaces it
with a frozen text encoder of transformers, such as CLIP's or T5's (extra `text`): a folder with its tokenizer, the
folder of a pipeline that has both, or the id of a repository on the hub. The cache of this machine is searched before
the hub. Every distinct caption is embedded once. The file records the encoder, and `sample` refuses another one. adm
and dit receive a caption as one vector; ldm attends to every byte or token. Captions longer than --caption-length are
cut, and a note says how many.

Some families have defaults of their own, as published: icgan normalizes features with l2 and does not limit gradients,
and ldm uses the schedule scaled_linear.

--first-stage trains dit or ldm on the latents of an autoencoder, which is saved with the generator: a file of
--arch autoencoder, a folder or repository of diffusers, or a generator file that contains one.

--export-diffusers also writes an adm or ldm generator with objective eps, v or x0 in the folder layout of diffusers,
even if the target is finished already. diffusers loads unet/, scheduler/ and vae/ or vqvae/ by from_pretrained.
corecli.safetensors holds what diffusers has no place for: the header, and the layers that map features, labels or
captions to the vector that is added to the time embedding. An unconditional generator of pixels gets a
model_index.json as well and runs as a pipeline, with the same images up to 1/255 when it is called with
use_clipped_model_output=True. `sample --ckpt DIR` reads the folder.

The target holds a moving average of the weights. The run folder OUT.d/ holds the log, the state and previews from fixed
seeds. To resume a run that was stopped or killed, run the same command again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import registry
from corecli.base.config import option
from corecli.commands.parts.inputs import ReadsImages
from corecli.commands.train_gen.presets import PRESETS as PRESETS
from corecli.diffusion import objectives, schedules

SUMMARY = "train an image generator conditioned on features, labels, captions or nothing"
PLACE = 2
PARTS = "generators"  # the registry whose options --set sets
FAMILY_FIELDS = (  # options that are fields of a family's Config
    "objective", "learn_sigma", "min_snr", "flow_times", "schedule", "diffusion_steps", "flip",
    "condition_dropout", "feature_normalization", "feature_noise", "latent_scale", "caption_length",
)  # fmt: skip
EXAMPLES = (
    ("R2G: a generator conditioned on features", "--data DIR --features z.safetensors --steps 1000 --out g.pt"),
    ("A generator conditioned on captions", "--data DIR --captions captions.jsonl --steps 1000 --out g.pt"),
    ("An unconditional baseline", "--data DIR --steps 1000 --out g0.pt"),
    (
        "CORE's ADM on CIFAR-10",
        "--preset adm-cifar --data torchvision:CIFAR10:train --features z.safetensors --out g.pt",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli train-gen`."""

    data: str = option(help="training images: an image set or mixture", role="input", metavar="SET")
    features: Path | None = option(None, help="feature table to condition on", role="input", metavar="FILE")
    captions: Path | None = option(
        None, help="captions to condition on: JSON lines with id and caption, or text", role="input", metavar="FILE"
    )
    text_encoder: str | None = option(
        None,
        help="frozen text encoder for --captions (default: a byte encoder trained with the generator)",
        role="input",
        metavar="DIR|ID",
    )
    caption_length: int | None = option(
        None, help="maximum caption length (default: 256 bytes, or all tokens that --text-encoder takes)", minimum=1
    )
    out: Path = option(help="generator file to write (.safetensors or .pt)", role="output", metavar="FILE")
    export_diffusers: Path | None = option(
        None, help="also write the generator as a diffusers folder", role="output", metavar="DIR"
    )
    arch: str = option("adm", help="generator family", choices=lambda: registry.choices("generators"))
    first_stage: str | None = option(
        None,
        help="autoencoder of a latent model: a file of --arch autoencoder, or a diffusers autoencoder",
        role="input",
        metavar="FILE|DIR|ID",
    )
    latent_scale: Literal["auto", "published", "measured"] | None = option(
        None, help="scale of the latents (default: the published one if there is one, else measured)"
    )
    condition: Literal["auto", "none", "features", "labels", "captions"] = option(
        "auto",
        help="condition; auto is features or captions if given, else none",
    )
    steps: int = option(10_000, help="optimizer steps", minimum=1)
    batch_size: int = option(128, help="images per step, over all processes", minimum=1)
    lr: float = option(1e-4, help="constant learning rate of AdamW", minimum=0)
    weight_decay: float = option(0.0, help="weight decay of AdamW", minimum=0)
    clip: float | None = option(
        None, help="maximum gradient norm; 0 is no limit (default: 1, or the family's)", minimum=0
    )
    ema: Literal["exponential", "power"] = option(
        "exponential", help="moving average of the weights; with power, sample --ema-length sets its length later"
    )
    ema_decay: float = option(0.9999, help="decay rate of the exponential average", minimum=0, maximum=1)
    ema_snapshots: int = option(
        32, help="number of snapshots of power averages kept in a run", role="runtime", minimum=1
    )
    set: tuple[str, ...] = option(
        (), help="option of the family, such as channels=64; repeatable", metavar="NAME=VALUE", joined=True
    )
    objective: str | None = option(
        None,
        help="training objective: predict noise, velocity or image; EDM; or rectified flow",
        choices=lambda: registry.choices(objectives.FOLDER),
    )
    learn_sigma: bool | None = option(
        None, help="also learn the variance, with the hybrid loss (default: only with eps)"
    )
    min_snr: float | None = option(
        None, help="gamma of min-SNR loss weighting for eps, v and x0 (default: 0, no weighting)", minimum=0
    )
    flow_times: Literal["uniform", "logit-normal"] | None = option(
        None, help="distribution of training times for flow (default: uniform)"
    )
    schedule: str | None = option(
        None, help="noise schedule (default: linear, or the family's)", choices=schedules.names
    )
    diffusion_steps: int | None = option(None, help="number of noising steps (default: 1000)", minimum=2)
    flip: bool | None = option(None, help="flip half of the images horizontally (default: yes)")
    condition_dropout: float | None = option(
        None,
        help="probability of dropping the condition, needed for guidance (default: 0.1)",
        minimum=0,
        maximum=1,
    )
    feature_normalization: Literal["none", "per-sample", "l2"] | None = option(
        None, help="normalization of each feature row (default: per-sample, or the family's)"
    )
    feature_noise: float | None = option(
        None, help="std of noise added to normalized features, which prevents near copies (default: 0)", minimum=0
    )
    preview_every: int = option(1000, help="steps between previews; 0 is none", role="runtime", minimum=0)
    log_every: int = option(50, help="steps between logged values", role="runtime", minimum=1)
    save_sec: float = option(60.0, help="seconds between saved states", role="runtime", minimum=0)


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the tables of the man page."""
    return {"FAMILIES": tuple((name, _described(registry.constants(PARTS, name))) for name in registry.choices(PARTS))}


def _described(family: dict[str, Any]) -> str:
    settings = ", ".join(_shown(name, default) for name, default in family["Options"].items())
    conditions = f" Conditions: {', '.join(family['CONDITIONS'])}." if "CONDITIONS" in family else ""
    return f"{family['title']}{conditions}" + (f" Options of --set: {settings}." if settings else "")


def _shown(name: str, default: Any) -> str:
    """Return NAME=DEFAULT, or the name alone if the default depends on other options."""
    if default in (None, ""):
        return name
    return f"{name}={','.join(map(str, default)) if isinstance(default, tuple) else default}"
