"""Train an image encoder.

Methods are self-supervised (simclr, moco, mocov3, byol, simsiam, barlow-twins, dino), supervised (supervised, supcon),
pseudo-supervised (psl, CORE Eq. 7: the projector's output is drawn to the feature row an image was made from), or draw
the images of a group together, be it a caption or a source image (stablerep, synclr).
Each has its published projector, views and augmentation, and options of its own, which --set changes; unknown names
are refused with the nearest one.

The data may be a mixture of real and synthetic images, and --views says which of them an image's views show. 2g, two
global views of the image at hand, is plain training, on real images alone, on synthetic ones, or their union (G2R).
real:1g,synthetic:1g pairs a real image with a synthetic one of its group (MixDiff; with DINO
real:1g6l,synthetic:1g2l). mixed:1g is synthetic with --synthetic-probability, else real (GenSSL: real:1g,mixed:1g on
one view, mixed:1g,mixed:1g on both). An epoch of pairs goes over the real images; the variant shown is drawn anew every
epoch from (seed, epoch, group), and entries of one image show different variants while there are enough. A real image
without partner shows itself, unless the mixture says that it is left out or refused (inflate --missing). Where the two
global views have policies of their own, paired images change places under them from step to step, so that how an image
was augmented does not tell where it is from.

An augmentation is a policy with a name; --augment-set changes its values for all views, as in flip=0 for what must not
be mirrored. They are the probabilities shrink (a half or a quarter of the detail), flip, jitter, grey, blur and
solarize, the strengths of the jitter brightness, contrast, saturation and hue, the ranges crop (part of the area; of
global views only), ratio and sigma (of the blur, in px), and threshold (from where solarize inverts).

For stablerep and synclr a batch should hold several images of each group: --images-per-group 4 takes 4 members of a
group at a time, drawn anew every epoch, each once at most (those of a smaller group go round again; such groups are
counted as short_groups). Positives are compared in every batch, so groups may be of any size and may repeat; without
--images-per-group, images alone in their group only repel, and are counted too. What counts as alike is a choice:
--set label-by=image|group|class makes SimCLR's, SynCLR's or a supervised contrast of the same loss (SynCLR, Table 5).
The parts of synclr are switched one by one (Table 4): --set ema=false takes the student's own keys, --set ibot=0 leaves
out the patch loss, --views 1g the local crops. iBOT masks patches, so it wants a ViT, and no more prototypes than a
batch has masked patches; a warning says when there are more. --accumulate N works a batch off in N parts; each part is
contrasted by itself, and teachers follow once a step.

--layer-decay D, below 1, is for ViTs that have learned before (--init): of L blocks, block i learns at D^(L+1-i) of the
rate, embeddings as i = 0, and what follows the blocks at the whole of it, as in fine-tuning (BEiT; probe).

Budgets are steps, so that training costs compare, and the image presentations are told before training starts; --stage
trains several methods in turn, each with its own warm-up and schedule, as CORE's PSL-10K + G2R
(METHOD:LENGTH or METHOD:LENGTH:VIEWS).

Logged on the way: the loss, the accuracy of an online linear probe on detached features of augmented images (where
labels are known; it only watches), and, of a fixed subset of the images, k-NN accuracy, effective rank, alignment,
uniformity and spread (1 when features fill the sphere, 0 when all are alike; below 0.1 a warning of collapse is given).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import option
from corecli.commands.parts.inputs import (
    ReadsImages,
)
from corecli.commands.train_ssl.presets import PRESETS as PRESETS
from corecli.views.policies import AUGMENTATIONS

if TYPE_CHECKING:
    pass

SUMMARY = "train an image encoder"
PLACE = 5
PARTS = "ssl"  # whose options --set gives
EXAMPLES = (
    ("A light SimCLR encoder", "--data DIR --method simclr --backbone resnet18 --steps 1000 --out f.safetensors"),
    (
        "G2R: retrain on real and synthetic images, weakly augmented",
        "--data mix.json --augment weak --steps 1000 --out f2.safetensors",
    ),
    ("MixDiff: real and synthetic twins", "--data mix.json --views real:1g,synthetic:1g --out f2.safetensors"),
    ("DINO on small images", "--data DIR --preset dino-cifar --set prototypes=1024 --steps 50ep --out f.safetensors"),
    (
        "SynCLR: 4 images of each caption in a batch",
        "--data syn --method synclr --backbone vit-small/8 --images-per-group 4 --out f.safetensors",
    ),
    (
        "G2R after 10,000 steps of PSL",
        "--data mix.json --features z.safetensors --stage psl:10000 --stage simclr:90000 --out f2.safetensors",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
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
    backbone: str = option(
        "resnet18", help="network: resnet18, resnet34, resnet50, resnet10-tiny, a ViT such as vit-small/4, or timm:NAME"
    )
    stem: Literal["auto", "cifar", "imagenet"] = option(
        "auto", help="first layers of a ResNet; auto is cifar up to 64 pixels, else imagenet"
    )
    drop_path: float = option(0.0, help="share of residual branches a ViT skips in training", minimum=0, maximum=1)
    projector_hidden: int | None = option(None, help="width of the projector; default the method's", minimum=1)
    projector_dim: int | None = option(
        None, help="dimension of the projector's output; default the method's", minimum=1
    )
    projector_norm: Literal["none", "batch", "layer"] | None = option(
        None, help="normalization in the projector; default the method's"
    )
    set: tuple[str, ...] = option(
        (), help="an option of the method, repeatable, such as temperature=0.1", metavar="NAME=VALUE", joined=True
    )
    views: str | None = option(
        None, help="views of an image: 2g8l, real:1g,synthetic:1g, ...; default the method's", metavar="VIEWS"
    )
    synthetic_probability: float | None = option(
        None, help="share of mixed views that are synthetic; default 0.5", minimum=0, maximum=1
    )
    augment: tuple[str, ...] = option(
        (),
        help="augmentation of the global views, repeatable; the last serves those that remain; default the method's",
        choices=AUGMENTATIONS,
    )
    augment_set: tuple[str, ...] = option(
        (),
        help="a value of the augmentation, repeatable, such as flip=0 or crop=0.5,1",
        metavar="NAME=VALUE",
        joined=True,
    )
    local_px: int | None = option(None, help="side of local views; default 3/7 of the image's", minimum=1)
    steps: str = option("10000", help="length of training: steps, or 100ep, or 5M images", metavar="LENGTH")
    batch_size: int = option(256, help="images a step, over all processes", minimum=1)
    images_per_group: int = option(
        1, help="images of a group that a batch shows together; 1 leaves it to chance", minimum=1
    )
    accumulate: int = option(1, help="parts that a batch is worked off in, to save memory", minimum=1)
    optimizer: Literal["lars", "sgd", "adamw"] = option("lars", help="optimizer")
    lr: float = option(0.4, help="peak learning rate, as it is: not scaled by the batch", minimum=0)
    weight_decay: float = option(1e-4, help="weight decay, of weights but not of biases and norms", minimum=0)
    weight_decay_end: float | None = option(
        None, help="weight decay at the end, reached by half a cosine; default no change", minimum=0
    )
    layer_decay: float = option(
        1.0, help="factor of a layer's learning rate to that of the next one, of a ViT", minimum=0, maximum=1
    )
    momentum: float = option(0.9, help="momentum of lars and sgd", minimum=0, maximum=1)
    adam_beta2: float = option(0.999, help="second moment's decay of adamw", minimum=0, maximum=1)
    lars_eta: float = option(0.02, help="trust coefficient of lars", minimum=0)
    lars_clip: bool = option(True, help="cap the rate of lars at --lr (LARC)")
    clip_grad: float | None = option(None, help="largest norm of the gradient; default no bound", minimum=0)
    schedule: Literal["cosine", "constant"] = option("cosine", help="learning rate after the warm-up")
    warmup: str = option(
        "auto", help="linear warm-up: 500, 10ep or 100k images; auto is a tenth of a stage, at most 10 epochs"
    )
    export: Literal["auto", "student", "teacher"] = option(
        "auto", help="which network to write; auto is the one the method's authors evaluate"
    )
    guard: bool = option(False, help="at most one member of a group in a batch")
    compile: bool = option(False, help="compile the augmentation, where there is a C++ compiler")
    log_every: int = option(50, help="steps between logged values", role="runtime", minimum=1)
    save_sec: float = option(60.0, help="seconds between saved states", role="runtime", minimum=0)


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """What the manual page says of the methods."""
    return {"METHODS": tuple((name, _described(registry.constants(PARTS, name))) for name in registry.choices(PARTS))}


def _described(told: dict[str, Any]) -> str:
    projector = told["PROJECTOR"]
    parts = [f"Views {told['VIEWS']}", f"augmentation {told['AUGMENT']}"]
    parts += [f"projector {projector['hidden']} to {projector['dim']}"] if projector else ["no projector"]
    parts += [f"--set {name}={cfg.to_json(default)}" for name, default in told["Options"].items()]
    return f"{told['title']} {', '.join(parts)}."
