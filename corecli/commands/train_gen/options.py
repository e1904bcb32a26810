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

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base import registry
from corecli.base.config import option
from corecli.commands.parts.inputs import (
    ReadsImages,
)
from corecli.commands.train_gen.presets import PRESETS as PRESETS
from corecli.diffusion import schedules

if TYPE_CHECKING:
    pass

SUMMARY = "train an image generator, on features, labels or nothing"
PLACE = 2
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
class Config(ReadsImages):
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
    objective: str | None = option(
        None,
        help="what the network learns: noise, velocity or image of the noising process, EDM's or a rectified flow",
        choices=lambda: registry.choices("diffusion/objectives"),
    )
    learn_sigma: bool | None = option(None, help="learn the variance too, with the hybrid loss; default with eps")
    min_snr: float | None = option(
        None, help="gamma of min-SNR weighting for eps, v and x0; default 0, none", minimum=0
    )
    flow_times: Literal["uniform", "logit-normal"] | None = option(None, help="how a flow draws its times")
    schedule: str | None = option(None, help="noise schedule", choices=schedules.names)
    diffusion_steps: int | None = option(None, help="steps of the noising process", minimum=2)
    flip: bool | None = option(None, help="mirror half of the images; default yes")
    condition_dropout: float | None = option(
        None, help="share of images trained without their condition, for guidance", minimum=0, maximum=1
    )
    feature_normalization: Literal["none", "per-sample", "l2"] | None = option(
        None, help="normalization of a feature row; default per-sample, for icgan l2"
    )
    feature_noise: float | None = option(
        None, help="noise added to normalized features in training, against near copies", minimum=0
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
