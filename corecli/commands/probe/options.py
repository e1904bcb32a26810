"""Score an encoder's features on labels.

By default features are computed once (or read from tables that `extract` wrote), standardized by the training set, and
a linear classifier is trained on them with a sweep of learning rates and weight decays, all in one pass. The setting is
chosen on a hold-out of the training set (or on --val), never on the test set; the classifier is trained again on all of
it and scored once. Repeated over --seeds. A weighted k-NN vote is scored from the same features.

With --mode logistic the classifier is a multinomial logistic regression, fitted by L-BFGS for 45 values of C from 1e-5
to 1e6, one of which is chosen likewise (DINOv2, SynCLR). --mode sgd is the protocol of most papers: in every epoch new
crops pass through the frozen encoder, and one classifier follows them by SGD or LARS; the presets are its published
forms. --mode finetune trains the encoder too, lower layers at lower rates (--layer-decay), on images that may be mixed
and distorted further; the presets synclr-b and synclr-l have all of SynCLR's Table 14.

--mode segment predicts masks: BatchNorm and a linear layer on the frozen encoder's patches (of a ResNet, on its last
map), bilinear between them, as DINOv2 does. It trains on random windows and is scored by the mean intersection over
union, from overlapping windows over test images as large as they are. Masks are files named like the images, with the
number of a class in each pixel; torchvision:VOCSegmentation:train has its own. --per-class prints each class's score.

Any number of sets go into one call and come out as one table. A test set is scored with the training set of its name
(--train cars=A --test cars=B: transfer), or else with the first training set (--test v2=C: evaluation under shift).
Labels are joined by class name where both sets have names. A test set whose names are some of the training set's, such
as ImageNet-A and ImageNet-R with 200 of 1,000 classes, is scored as the field does: over the logits of its own classes.

--corruptions adds the accuracy under the common corruptions of ImageNet-C and CIFAR-C, computed as images are read.
With --labels images have several classes: --mode logistic fits a binary classifier for each, with one C, and map is
VOC 2007's mean average precision, of 11 points, as its development kit computes it; difficult ones are passed over.
What SynCLR's Table 6 and DINOv2 tell of a set is mean_per_class for Aircraft, Caltech-101, Flowers and Pets, map for
VOC 2007, and top1 for the others.

--pool and --blocks take other features of a vision transformer than its output, in every mode but segment.

With --shots or --fraction every seed draws a part of the training set, alike from every class, and --val only chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base.config import Preset, option
from corecli.commands.parts.inputs import ReadsImages

if TYPE_CHECKING:
    pass

SUMMARY = "score an encoder's features on labels"
PLACE = 6
EXAMPLES = (
    ("Accuracy of an encoder", "--encoder f.safetensors --train train --test test"),
    ("From feature tables", "--train z_train.safetensors --test z_test.safetensors --json"),
    (
        "Transfer to two data sets, one table",
        "--encoder f.safetensors --train cars=A/train --test cars=A/test --train pets=B/train --test pets=B/test",
    ),
    (
        "Under shift",
        "--encoder f.safetensors --train imagenet/train --test imagenet/val --test r=imagenet-r --test v2=V2",
    ),
    (
        "Masks from frozen patches",
        "--preset ade20k --encoder f.safetensors --train images/training --train-masks annotations/training "
        "--test images/validation --test-masks annotations/validation",
    ),
)
# The linear evaluations people publish; their rates are for 256 images a step.
_SGD: Preset = {
    "mode": "sgd",
    "augment": "crop",
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "head": "linear",
}
_LARS: Preset = {**_SGD, "optimizer": "lars"}
_SYNCLR: Preset = {
    "mode": "finetune",
    "lr": 5e-5,
    "train_batch": 1024,
    "epochs": 100,
    "warmup_epochs": 20,
    "weight_decay": 0.05,
    "layer_decay": 0.65,
    "drop_path": 0.1,
    "label_smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_switch": 0.5,
    "rand_augment": 9.0,
    "erasing": 0.25,
    "ema": 0.9999,
}
PRESETS: dict[str, Preset] = {
    # SimCLR, B.6, but without Nesterov's momentum, as in lightly's ImageNet benchmark.
    "simclr": {**_SGD, "lr": 0.1, "train_batch": 4096, "epochs": 90},
    # solo-learn, offline; the rate is SimCLR's: BYOL has 0.1, Barlow Twins and MoCo v3 0.3, MoCo v2+ 3, SimSiam 30.
    "solo": {**_SGD, "lr": 1.0, "train_batch": 256, "epochs": 100, "schedule": "steps"},
    # GenSSL's program; its paper says a batch of 512.
    "genssl": {**_LARS, "lr": 0.1, "train_batch": 2048, "epochs": 100, "lars_bias": "adapt"},
    # MoCo v3's program, for ResNets; ViTs have a rate of 3.
    "mocov3": {**_SGD, "lr": 0.1, "train_batch": 1024, "epochs": 90},
    # MAE, A.1.
    "mae": {**_LARS, "lr": 0.1, "train_batch": 16384, "epochs": 90, "warmup_epochs": 10, "head": "batchnorm"},
    # SynCLR, Table 14, but for its rate's end of 1e-6 and the crop of 0.95 in the test of the base model.
    "synclr-b": {**_SYNCLR},
    "synclr-l": {
        **_SYNCLR,
        "epochs": 50,
        "warmup_epochs": 5,
        "layer_decay": 0.8,
        "drop_path": 0.3,
        "label_smoothing": 0.2,
    },
    "synclr-transfer": {"mode": "logistic", "holdout": 0.2},  # appendix B.5: where a set has no official --val
    "ade20k": {"mode": "segment", "num_classes": 150, "reduce_zero_label": True},
    "voc": {"mode": "segment", "num_classes": 21},
}


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli probe`."""

    train: tuple[str, ...] = option(
        help="labeled image set, or feature table; repeatable with names", role="input", metavar="[NAME=]SET"
    )
    test: tuple[str, ...] = option(
        help="labeled set to score on, with the --train of its NAME or else the first; repeatable",
        role="input",
        metavar="[NAME=]SET",
    )
    val: tuple[str, ...] = option(
        (), help="set to choose the setting on, instead of a hold-out of train", role="input", metavar="[NAME=]SET"
    )
    encoder: str | None = option(None, help="encoder file, or timm:NAME[:WEIGHTS]", role="input", metavar="FILE|NAME")
    layer: Literal["backbone", "projector"] = option("backbone", help="which features")
    pool: Literal["cls", "mean", "cls+mean"] | None = option(
        None, help="of a vision transformer's blocks: class tokens, means of patches, or the first and the last's mean"
    )
    blocks: int | None = option(None, help="features of the last so many blocks, side by side", minimum=1)
    mode: Literal["sweep", "logistic", "sgd", "finetune", "segment"] = option(
        "sweep", help="how the classifier is trained, or that of every patch"
    )
    train_masks: tuple[str, ...] = option(
        (), help="masks of the --train of NAME, files named like its images", role="input", metavar="[NAME=]SET"
    )
    test_masks: tuple[str, ...] = option(
        (), help="masks of the --test of NAME, likewise", role="input", metavar="[NAME=]SET"
    )
    num_classes: int | None = option(
        None, help="classes of the masks, from 0 on; by default as many as the training masks show", minimum=2
    )
    reduce_zero_label: bool | None = option(
        None, help="0 in masks is no class, and 1 the first (ADE20K); 255 is none anyway"
    )
    steps: int | None = option(None, help="training steps of segment; by default 40000", minimum=1)
    warmup_steps: int | None = option(None, help="of the learning rate of segment; by default 1500", minimum=0)
    crop_px: int | None = option(None, help="side of the windows of segment; by default 512", minimum=1)
    stride_px: int | None = option(
        None, help="from one window to the next, in segment's test; by default 341", minimum=1
    )
    seeds: int | None = option(
        None, help="repetitions, for the interval; 3 for the sweep and for parts of a set, else 1", minimum=1
    )
    holdout: float | None = option(
        None, help="share of each class to choose the setting on; by default 0.1", minimum=1e-6, maximum=0.9
    )
    shots: int | None = option(None, help="train on this many images of each class, others for each seed", minimum=1)
    fraction: float | None = option(
        None, help="train on this part of each class, another for each seed", minimum=1e-6, maximum=1
    )
    epochs: int | None = option(
        None, help="passes over the training set: sweep 20, and at least 500 steps, sgd 90, finetune 100", minimum=1
    )
    augment: Literal["crop", "flip", "none"] | None = option(
        None, help="views to train on, new in every epoch: sgd and finetune crop; sgd on features none"
    )
    train_batch: int | None = option(None, help="images a training step: sgd 256, finetune 1024, segment 16", minimum=1)
    optimizer: Literal["sgd", "lars", "adamw"] | None = option(
        None, help="of training: sgd sgd, with momentum 0.9; finetune adamw"
    )
    lr: float | None = option(
        None, help="learning rate for 256 images a step: sgd 0.1, finetune 5e-5; of segment, as it is: 0.001", minimum=0
    )
    weight_decay: float | None = option(None, help="of training: sgd 0, finetune 0.05, segment 0.0001", minimum=0)
    schedule: Literal["cosine", "steps"] | None = option(
        None, help="the rate's way down: cosine to 0, or a tenth after 60 % and again after 80 %; default cosine"
    )
    warmup_epochs: int | None = option(None, help="of the learning rate: sgd 0, finetune 20", minimum=0)
    head: Literal["linear", "batchnorm"] | None = option(
        None, help="the classifier of sgd: linear, or with a BatchNorm without weights before it (MAE); default linear"
    )
    lars_bias: Literal["plain", "adapt"] | None = option(
        None, help="whether LARS adapts the steps of biases too (GenSSL); default plain"
    )
    label_smoothing: float | None = option(None, help="of finetune; by default 0.1", minimum=0, maximum=1)
    layer_decay: float | None = option(
        None, help="factor of a layer's learning rate to that of the next one, of finetune; by default 0.65", minimum=0
    )
    mixup: float | None = option(
        None,
        help="average pairs of images in finetune, with parts from Beta(a, a) of this a; by default 0: none",
        minimum=0,
    )
    cutmix: float | None = option(None, help="cut images into each other in finetune, likewise", minimum=0)
    mix_switch: float | None = option(
        None, help="how often --cutmix where there is --mixup, too; by default 0.5", minimum=0, maximum=1
    )
    rand_augment: float | None = option(
        None, help="magnitude of two random operations on images in finetune; by default 0: none", minimum=0, maximum=10
    )
    erasing: float | None = option(
        None, help="share of images with a rectangle of noise in finetune; by default 0", minimum=0, maximum=1
    )
    drop_path: float | None = option(
        None, help="share of residual branches that the last block skips in finetune", minimum=0, maximum=1
    )
    ema: float | None = option(
        None, help="score the moving average of finetune's weights, of this decay", minimum=0, maximum=1
    )
    k: tuple[int, ...] = option((), help="neighbors of the k-NN vote; by default 20", minimum=1)
    knn_temperature: float | None = option(None, help="of the k-NN vote; by default 0.07", minimum=1e-6)
    subset_logits: bool = option(
        True, help="score a test set with names for some of the classes over their logits alone"
    )
    labels: Path | None = option(
        None,
        help="classes of images that have several: lines of key, tab, CLASS;..., and for difficult ones tab, CLASS;...",
        role="input",
        metavar="FILE.tsv",
    )
    corruptions: tuple[str, ...] = option(
        (), help="also score the first test set under these, at five severities", metavar="all|NAME,..."
    )
    confusion: Path | None = option(
        None, help="write the confusion matrix of the first test set", role="output", metavar="FILE.csv"
    )
    per_class: bool = option(False, help="also print the accuracy of each class", role="runtime")
    batch_size: int = option(256, help="images per forward pass", role="runtime", minimum=1)


_NEIGHBORS = {"k": (20,), "knn_temperature": 0.07}
_CHOICE = {"holdout": 0.1}
# The options that apply to some modes only, with the values they have there unless given.
OF_MODE: dict[str, dict[str, Any]] = {
    "sweep": {"epochs": 20, **_NEIGHBORS, **_CHOICE},
    "logistic": {**_NEIGHBORS, **_CHOICE},
    "sgd": {  # MoCo v3's classifier for ResNets
        "epochs": 90,
        "augment": "crop",
        "train_batch": 256,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "head": "linear",
        "lars_bias": "plain",
    },
    "finetune": {  # SynCLR, Table 14, for a ViT-B, without what its presets add
        "epochs": 100,
        "augment": "crop",
        "train_batch": 1024,
        "optimizer": "adamw",
        "lr": 5e-5,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 20,
        "lars_bias": "plain",
        "label_smoothing": 0.1,
        "layer_decay": 0.65,
        "mixup": 0.0,
        "cutmix": 0.0,
        "mix_switch": 0.5,
        "rand_augment": 0.0,
        "erasing": 0.0,
        "drop_path": None,
        "ema": None,
    },
    "segment": {  # DINOv2's linear head: the settings of its program
        "train_masks": (),
        "test_masks": (),
        "num_classes": None,
        "reduce_zero_label": False,
        "steps": 40_000,
        "warmup_steps": 1500,
        "train_batch": 16,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "crop_px": 512,
        "stride_px": 341,
    },
}


def of_mode(config: Config, name: str) -> Any:
    """The value of an option that belongs to the mode: as given, else the mode's own."""
    value = getattr(config, name)
    return OF_MODE[config.mode][name] if value in (None, ()) else value
