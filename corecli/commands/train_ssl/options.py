"""Train an image encoder.

Methods. simclr, moco, mocov3, byol, simsiam, barlow-twins and dino are self-supervised. supervised and supcon learn
from labels. psl predicts the feature row that an image was generated from (CORE, Eq. 7). stablerep and synclr pull the
images of a group together; a group is a caption or a source image. Each method has its published projector, views and
augmentation, and options of its own, which --set changes.

Views. --views gives the number of global and local views of an image: 2g is two global views, 2g8l adds eight local
ones. The image may be real or synthetic, so 2g on a mixture is plain training on the union of real and synthetic images
(G2R). Other forms pair images of a group. real:1g,synthetic:1g shows a real image and a synthetic image of its group
(MixDiff; with DINO, real:1g6l,synthetic:1g2l). mixed:1g shows a synthetic image with --synthetic-probability, else the
real one (GenSSL: real:1g,mixed:1g changes one view, mixed:1g,mixed:1g both).

With paired views, an epoch is one pass over the real images. The synthetic image is drawn anew in every epoch from
(seed, epoch, group), and the views of an image show different ones while there are enough. A real image without a
synthetic partner is paired with itself, unless the mixture says otherwise (inflate --missing). When the two global
views have different augmentations, paired images swap them from step to step, so that the augmentation does not reveal
the origin of an image.

Augmentation. --augment names the policy of each global view in turn; the last one serves the remaining views.
--augment-set changes values for all views: the probabilities shrink (a half or a quarter of the resolution), flip,
jitter, grey, blur and solarize; the strengths of jitter brightness, contrast, saturation and hue; the ranges crop
(share of the area; global views only), ratio and sigma (of the blur, in pixels); and threshold (solarize inverts values
at or above it). For example, flip=0 keeps text readable.

Sizes. --view-px sets the side of the global views, --local-px that of the local ones. With --view-px, crops are taken
from the whole image at its own size, as in the papers, and images may differ in size. With --image-size, images are
first resized and cropped to a square, and crops are taken from that; without either, images must be squares of one
size. The encoder records how it sees an image after training: the shorter side is resized to --eval-resize, and the
central square of --view-px is cropped (256 and 224 px for photographs, as published).

Groups in a batch. stablerep and synclr need several images of a group in a batch. --images-per-group 4 shows 4 members
of a group together, drawn anew in every epoch, each at most once; a smaller group repeats its members, and such groups
are counted as short_groups. Positives are compared within a batch, so groups may have any size. Without
--images-per-group, an image that is alone in its group is only a negative; such images are counted, too.

--set label-by=image|group|class chooses the positives of stablerep and synclr, which gives the losses of SimCLR, SynCLR
and supervised contrast (SynCLR, Table 5). The parts of synclr can be switched off one by one (SynCLR, Table 4): --set
ema=false uses keys of the student, --set ibot=0 removes the patch loss, and --views 1g removes the local views. The
patch loss needs a ViT, and should have no more prototypes than a batch has masked patches; otherwise a warning is
printed.

--accumulate N processes a batch in N parts to save memory. Each part has a contrastive loss of its own, and teachers
are updated once per step.

--layer-decay D, with D below 1, is for pretrained ViTs (--init). Block i of L has learning rate lr * D^(L+1-i);
embeddings count as block 0, and the head uses lr, as in fine-tuning (BEiT).

Length. --steps is a number of steps, epochs or images. Before training starts, the number of image presentations is
printed, so that runs can be compared at equal cost. --stage trains several methods in turn, as in CORE's PSL-10K + G2R;
it has the form METHOD:LENGTH or METHOD:LENGTH:VIEWS. Each stage has its own warm-up and schedule.

Log. log.jsonl holds the loss and, where labels are known, the accuracy of an online linear probe on detached features
of augmented images, which does not change the encoder. data_wait is the share of time that training waits for images;
above a few percent, use more --workers. On a fixed subset of the images it holds k-NN accuracy,
effective rank, alignment, uniformity and spread. spread is 1 when features fill the sphere and 0 when they are all
equal; below 0.1, a warning of collapse is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import option
from corecli.commands.parts.inputs import ReadsImages
from corecli.commands.train_ssl.presets import PRESETS as PRESETS
from corecli.views.policies import AUGMENTATIONS

SUMMARY = "train an image encoder"
PLACE = 5
PARTS = "ssl"  # the registry whose options --set changes
EXAMPLES = (
    ("Train a small SimCLR encoder", "--data DIR --method simclr --backbone resnet18 --steps 1000 --out f.safetensors"),
    (
        "G2R: train again on real and synthetic images, with weak augmentation",
        "--data mix.json --augment weak --steps 1000 --out f2.safetensors",
    ),
    (
        "MixDiff: pair each real image with a synthetic one",
        "--data mix.json --views real:1g,synthetic:1g --out f2.safetensors",
    ),
    (
        "Train DINO on small images",
        "--data DIR --preset dino-cifar --set prototypes=1024 --steps 50ep --out f.safetensors",
    ),
    (
        "SynCLR: show 4 images of each caption in a batch",
        "--data syn --method synclr --backbone vit-small/8 --images-per-group 4 --out f.safetensors",
    ),
    (
        "Train 10,000 steps of PSL, then SimCLR on the mixture (G2R)",
        "--data mix.json --features z.safetensors --stage psl:10000 --stage simclr:90000 --out f2.safetensors",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli train-ssl`."""

    data: str = option(help="training images: an image set or mixture", role="input", metavar="SET")
    out: Path = option(help="encoder file to write (.safetensors or .pt)", role="output", metavar="FILE")
    method: str = option("simclr", help="training method", choices=lambda: registry.choices("ssl"))
    stage: tuple[str, ...] = option(
        (), help="stage, METHOD:LENGTH[:VIEWS]; repeatable; replaces --method and --steps", metavar="METHOD:LENGTH"
    )
    features: Path | None = option(
        None, help="feature table with the targets of psl and the like", role="input", metavar="FILE"
    )
    init: str | None = option(
        None, help="encoder to start from; determines backbone, stem and projector", role="input", metavar="FILE|NAME"
    )
    backbone: str = option(
        "resnet18", help="resnet18, resnet34, resnet50, resnet10-tiny, a ViT such as vit-small/4, or timm:NAME"
    )
    stem: Literal["auto", "cifar", "imagenet"] = option(
        "auto", help="first layers of a ResNet; auto is cifar up to 64 pixels, else imagenet"
    )
    drop_path: float = option(0.0, help="stochastic depth rate of the last block of a ViT", minimum=0, maximum=1)
    projector_hidden: int | None = option(None, help="width of the projector (default: the method's)", minimum=1)
    projector_dim: int | None = option(
        None, help="output dimension of the projector (default: the method's)", minimum=1
    )
    projector_norm: Literal["none", "batch", "layer"] | None = option(
        None, help="normalization in the projector (default: the method's)"
    )
    set: tuple[str, ...] = option(
        (), help="option of the method, such as temperature=0.1; repeatable", metavar="NAME=VALUE", joined=True
    )
    views: str | None = option(
        None, help="views of an image, such as 2g8l or real:1g,synthetic:1g (default: the method's)", metavar="VIEWS"
    )
    synthetic_probability: float | None = option(
        None, help="probability that a mixed view is synthetic (default: 0.5)", minimum=0, maximum=1
    )
    augment: tuple[str, ...] = option(
        (),
        help="augmentation of the global views in turn; repeatable (default: the method's)",
        choices=AUGMENTATIONS,
    )
    augment_set: tuple[str, ...] = option(
        (),
        help="value of the augmentation, such as flip=0 or crop=0.5,1; repeatable",
        metavar="NAME=VALUE",
        joined=True,
    )
    view_px: int | None = option(
        None, help="side of global views in pixels, cut out of images of any size (default: the image's)", minimum=1
    )
    local_px: int | None = option(
        None, help="side of local views in pixels (default: 3/7 of the global views)", minimum=1
    )
    eval_resize: int | None = option(
        None, help="side to which images are resized before the center crop (default: 8/7 of --view-px)", minimum=1
    )
    steps: str = option("10000", help="length of training: 500 steps, 100ep or 5M images", metavar="LENGTH")
    batch_size: int = option(256, help="images per step, over all processes", minimum=1)
    images_per_group: int = option(1, help="number of images of a group shown together in a batch", minimum=1)
    accumulate: int = option(1, help="number of parts in which a batch is processed, to save memory", minimum=1)
    optimizer: Literal["lars", "sgd", "adamw"] = option("lars", help="optimizer")
    lr: float = option(0.4, help="peak learning rate; not scaled by the batch size", minimum=0)
    weight_decay: float = option(1e-4, help="weight decay; not applied to biases and norms", minimum=0)
    weight_decay_end: float | None = option(
        None, help="final weight decay, reached by half a cosine (default: constant)", minimum=0
    )
    layer_decay: float = option(
        1.0, help="layer-wise decay of a ViT's learning rate, from the head to the input", minimum=0, maximum=1
    )
    momentum: float = option(0.9, help="momentum of lars and sgd", minimum=0, maximum=1)
    adam_beta2: float = option(0.999, help="beta2 of adamw", minimum=0, maximum=1)
    lars_eta: float = option(0.02, help="trust coefficient of lars", minimum=0)
    lars_clip: bool = option(True, help="limit the learning rate of each tensor to --lr (LARC)")
    clip_grad: float | None = option(None, help="maximum gradient norm (default: no limit)", minimum=0)
    schedule: Literal["cosine", "constant"] = option("cosine", help="learning rate schedule after the warm-up")
    warmup: str = option(
        "auto", help="linear warm-up: 500, 10ep or 100k images; auto is 1/10 of a stage, at most 10 epochs"
    )
    export: Literal["auto", "student", "teacher"] = option(
        "auto", help="network to write; auto is the one that the authors of the method evaluate"
    )
    guard: bool = option(False, help="put at most one image of a group into a batch")
    compile: bool = option(False, help="compile the augmentation, if a C++ compiler is available")
    log_every: int = option(50, help="steps between logged values", role="runtime", minimum=1)
    save_sec: float = option(60.0, help="seconds between saved states", role="runtime", minimum=0)


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the table METHODS of the man page: name and description of each method."""
    return {"METHODS": tuple((name, _described(registry.constants(PARTS, name))) for name in registry.choices(PARTS))}


def _described(constants: dict[str, Any]) -> str:
    projector = constants["PROJECTOR"]
    parts = [f"Views {constants['VIEWS']}", f"augmentation {constants['AUGMENT']}"]
    parts += [f"projector {projector['hidden']} to {projector['dim']}"] if projector else ["no projector"]
    settings = ", ".join(f"{name}={cfg.to_json(default)}" for name, default in constants["Options"].items())
    return f"{constants['title']} {', '.join(parts)}." + (f" Options of --set: {settings}." if settings else "")
