"""Score an encoder's features on labels.

A classifier is trained on the features of a labeled set and scored on others. --mode chooses how it is trained; the
section MODES lists all modes with the defaults of their options. Features are computed from images by --encoder, or
read from tables that `extract` wrote.

The default mode, sweep, computes features once, standardizes them by the training set, and trains a linear classifier
for many learning rates and weight decays at the same time. The setting is chosen on a part of the training set that is
held out (--holdout), or on --val, but never on the test set. The classifier is then trained again on the whole training
set and scored once. This is repeated for each of --seeds. Modes that compute features once also score a weighted k-NN
vote on them.

--mode logistic fits a multinomial logistic regression by L-BFGS and chooses C among 45 values from 1e-5 to 1e6 in the
same way, as DINOv2 and SynCLR do. --mode sgd is the protocol of most papers: new crops pass through the frozen encoder
in every epoch, and a linear classifier is trained on them by SGD or LARS. The presets simclr, solo, genssl, mocov3 and
mae have the published settings. --mode finetune also trains the encoder, with lower learning rates for lower layers
(--layer-decay). The presets synclr-b and synclr-l have all settings of SynCLR's Table 14.

--mode segment predicts masks, as DINOv2 does: BatchNorm and a linear layer are trained on the frozen encoder's patches
(for a ResNet, on its last feature map), and their output is enlarged bilinearly. Training uses random windows. The
score is the mean intersection over union (miou), from overlapping windows over test images at full size. Masks are
image files with the names of the images, whose pixels are class numbers; torchvision:VOCSegmentation:train has its own.

One call can have any number of sets, and prints one table. A test set is scored with the training set of the same name
(--train cars=A --test cars=B: transfer), or else with the first training set (--test v2=C: evaluation under shift).
Labels are joined by class name if both sets have names. A test set with some of the classes, such as ImageNet-A and
ImageNet-R with 200 of 1,000, is scored over the logits of its own classes, as is usual.

--corruptions adds the accuracy under the common corruptions of ImageNet-C and CIFAR-C, which are computed as images are
read. With --labels, images may have several classes: --mode logistic fits a binary classifier for each class, with one
C for all, and the score is the mean average precision (map) of VOC 2007, with 11 points as in its development kit;
difficult objects are ignored. SynCLR's Table 6 and DINOv2 report mean_per_class for Aircraft, Caltech-101, Flowers and
Pets, map for VOC 2007, and top1 for other sets.

--pool and --blocks select features of a vision transformer other than its output, in every mode except segment. With
--shots or --fraction, each seed trains on another part of the training set, balanced over classes, and --val is used
only to choose the setting.

--predictions writes one line for each image of the first test set: its key, its class, the class that each of --seeds
predicts (columns probe0, probe1, ...) and the classes of the k-NN votes (knn0, ..., or knn5_0, ... for several --k; one
column if all seeds train on the same images). Two encoders can then be compared image by image.

Options of a mode that are not listed under OPTIONS are given with --set NAME=VALUE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import option
from corecli.commands.parts.inputs import ReadsImages
from corecli.commands.probe.presets import PRESETS as PRESETS

SUMMARY = "score an encoder's features on labels"
PLACE = 6
MODES = "commands/probe/modes"  # the folder whose files are the modes
PARTS = MODES  # whose options --set gives
EXAMPLES = (
    ("Score an encoder", "--encoder f.safetensors --train train --test test"),
    ("Score feature tables", "--train z_train.safetensors --test z_test.safetensors --json"),
    (
        "Measure transfer to two data sets, in one table",
        "--encoder f.safetensors --train cars=A/train --test cars=A/test --train pets=B/train --test pets=B/test",
    ),
    (
        "Measure robustness to distribution shift",
        "--encoder f.safetensors --train imagenet/train --test imagenet/val --test r=imagenet-r --test v2=V2",
    ),
    (
        "Segment images with a frozen encoder",
        "--preset ade20k --encoder f.safetensors --train images/training --train-masks annotations/training "
        "--test images/validation --test-masks annotations/validation",
    ),
)
_NEEDS = {
    "features": "Reads image sets or feature tables.",
    "views": "Reads images to train on; with --augment none also feature tables.",
    "images": "Reads image sets.",
    "masks": "Reads image sets with masks.",
}
_NO_DEFAULT = ("", "None", "False")


def _text(value: Any) -> str:
    """Return the value of an option as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _modes_with(name: str) -> str:
    """Return the modes that have an option, with its default in each."""
    declared = {mode: registry.constants(MODES, mode)["Options"] for mode in registry.choices(MODES)}
    defaults = {mode: _text(options[name]) for mode, options in declared.items() if name in options}
    if len({*defaults.values()}) > 1:
        return "default: " + ", ".join(f"{default} in {mode}" for mode, default in defaults.items())
    default = next(iter(defaults.values()), "")
    modes = f"mode{'s' if len(defaults) > 1 else ''} {', '.join(defaults)}"
    return modes if default in _NO_DEFAULT else f"{modes}; default: {default}"


def _mode_option(default: Any = None, **described: Any) -> Any:
    """Return an option that only some modes have; its help ends with these modes and their defaults."""
    return option(default, suffix=_modes_with, **described)


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli probe`."""

    train: tuple[str, ...] = option(
        help="labeled image set or feature table to train on; repeatable with names", role="input", metavar="[NAME=]SET"
    )
    test: tuple[str, ...] = option(
        help="labeled set to score, with the --train of its NAME or else the first; repeatable",
        role="input",
        metavar="[NAME=]SET",
    )
    val: tuple[str, ...] = option(
        (), help="labeled set to choose the setting on, instead of a hold-out", role="input", metavar="[NAME=]SET"
    )
    encoder: str | None = option(None, help="encoder file, or timm:NAME[:WEIGHTS]", role="input", metavar="FILE|NAME")
    layer: Literal["backbone", "projector"] = option("backbone", help="layer of the encoder that gives the features")
    pool: Literal["cls", "mean", "cls+mean"] | None = option(
        None, help="ViT pooling: class tokens, patch mean, or class tokens and the last patch mean"
    )
    blocks: int | None = option(None, help="concatenate the features of the last N blocks of a ViT", minimum=1)
    mode: str = option("sweep", help="evaluation protocol", choices=lambda: registry.choices(MODES))
    set: tuple[str, ...] = option(
        (), help="option of the mode that is not listed here; repeatable", metavar="NAME=VALUE", joined=True
    )
    train_masks: tuple[str, ...] = _mode_option(
        (), help="masks of the --train with the same NAME", role="input", metavar="[NAME=]SET"
    )
    test_masks: tuple[str, ...] = _mode_option(
        (), help="masks of the --test with the same NAME", role="input", metavar="[NAME=]SET"
    )
    num_classes: int | None = _mode_option(
        help="number of classes in the masks (default: counted in the training masks)", minimum=2
    )
    reduce_zero_label: bool | None = _mode_option(
        help="treat mask value 0 as no class and 1 as the first class (ADE20K); 255 is never a class"
    )
    steps: int | None = _mode_option(help="training steps", minimum=1)
    warmup_steps: int | None = _mode_option(help="steps of linear learning-rate warm-up", minimum=0)
    crop_px: int | None = _mode_option(help="side of training and test windows, in pixels", minimum=1)
    stride_px: int | None = _mode_option(help="distance between test windows, in pixels", minimum=1)
    seeds: int | None = option(
        None, help="number of repetitions (default: the mode's, and at least 3 with --shots or --fraction)", minimum=1
    )
    holdout: float | None = _mode_option(
        help="share of each class that is held out to choose the setting", minimum=1e-6, maximum=0.9
    )
    shots: int | None = option(None, help="train on this many random images of each class", minimum=1)
    fraction: float | None = option(None, help="train on this random fraction of each class", minimum=1e-6, maximum=1)
    epochs: int | None = _mode_option(
        help="passes over the training set; sweep trains for at least 500 steps", minimum=1
    )
    augment: Literal["crop", "flip", "none"] | None = _mode_option(
        help="augmentation of training images; with none, sgd computes features once"
    )
    train_batch: int | None = _mode_option(help="images per training step, over all processes", minimum=1)
    optimizer: Literal["sgd", "lars", "adamw"] | None = _mode_option(help="optimizer; sgd and lars have momentum 0.9")
    lr: float | None = _mode_option(
        help="peak learning rate at --train-batch 256; scaled linearly, except in segment", minimum=0
    )
    weight_decay: float | None = _mode_option(help="weight decay", minimum=0)
    schedule: Literal["cosine", "steps"] | None = _mode_option(
        help="learning rate: cosine to 0, or divided by 10 after 60% and 80% of training"
    )
    warmup_epochs: int | None = _mode_option(help="epochs of linear learning-rate warm-up", minimum=0)
    head: Literal["linear", "batchnorm"] | None = _mode_option(
        help="classifier: linear, or linear after BatchNorm without weights (MAE)"
    )
    lars_bias: Literal["plain", "adapt"] | None = _mode_option(
        help="whether LARS adapts the learning rate of biases too (GenSSL)"
    )
    label_smoothing: float | None = _mode_option(help="label smoothing", minimum=0, maximum=1)
    layer_decay: float | None = _mode_option(
        help="layer-wise decay: ratio of the learning rates of a layer and the next higher one", minimum=0
    )
    mixup: float | None = _mode_option(help="alpha of Mixup's Beta distribution; 0 is off", minimum=0)
    cutmix: float | None = _mode_option(help="alpha of CutMix's Beta distribution; 0 is off", minimum=0)
    mix_switch: float | None = _mode_option(help="probability of CutMix when Mixup is on as well", minimum=0, maximum=1)
    rand_augment: float | None = _mode_option(
        help="magnitude of RandAugment, with two operations per image; 0 is off", minimum=0, maximum=10
    )
    erasing: float | None = _mode_option(help="probability of random erasing", minimum=0, maximum=1)
    drop_path: float | None = _mode_option(
        help="stochastic depth rate of the last block (default: the encoder's)", minimum=0, maximum=1
    )
    ema: float | None = _mode_option(
        help="decay of a moving average of the weights, which is then scored instead of them", minimum=0, maximum=1
    )
    k: tuple[int, ...] = _mode_option((), help="number of neighbors of the k-NN vote", minimum=1)
    knn_temperature: float | None = _mode_option(help="temperature of the k-NN vote", minimum=1e-6)
    subset_logits: bool = option(
        True, help="if a test set has only some of the classes, score it over their logits alone"
    )
    labels: Path | None = option(
        None,
        help="labels of multi-label images: lines KEY, tab, CLASS;... [tab, difficult CLASS;...]",
        role="input",
        metavar="FILE.tsv",
    )
    corruptions: tuple[str, ...] = option(
        (), help="corruptions under which to score the first test set as well", metavar="all|NAME,..."
    )
    confusion: Path | None = option(
        None, help="CSV file to write the confusion matrix of the first test set to", role="output", metavar="FILE.csv"
    )
    predictions: Path | None = option(
        None,
        help="CSV file to write the predicted classes of the first test set's images to",
        role="output",
        metavar="FILE.csv",
    )
    per_class: bool = option(False, help="print the accuracy of each class as well", role="runtime")
    batch_size: int = option(256, help="images per forward pass", role="runtime", minimum=1)


def mode_options(config: Config) -> dict[str, Any]:
    """Return the options of the chosen mode, as given on the command line or else by default; --set is left out."""
    declared = registry.constants(MODES, config.mode)["Options"]
    given = {name: getattr(config, name, None) for name in declared}
    return {**declared, **{name: value for name, value in given.items() if value not in (None, ())}}


def num_seeds(config: Config) -> int:
    """Return the number of repetitions: as given, or the mode's, and at least 3 if each trains on other images."""
    if config.seeds is not None:
        return config.seeds
    of_mode = registry.constants(MODES, config.mode)["NUM_SEEDS"]
    return max(of_mode, 3) if config.shots is not None or config.fraction is not None else of_mode


def trains_on_images(config: Config) -> bool:
    """Whether a mode for classes trains on images, not on features that are computed once."""
    needs = registry.constants(MODES, config.mode)["NEEDS"]
    return needs == "images" or (needs == "views" and mode_options(config)["augment"] != "none")


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the tables of the man page."""
    return {"MODES": tuple((name, _described(registry.constants(MODES, name))) for name in registry.choices(MODES))}


def _described(mode: dict[str, Any]) -> str:
    texts = {name: _text(value) for name, value in [("seeds", mode["NUM_SEEDS"]), *mode["Options"].items()]}
    options = ", ".join(f"{_spelled(name)} {text}" for name, text in texts.items() if text not in _NO_DEFAULT)
    return f"{mode['title']} {_NEEDS[mode['NEEDS']]} {f'Defaults: {options}.' if options else ''}".strip()


def _spelled(name: str) -> str:
    return cfg.flag(name) if name in cfg.described(Config) else f"--set {name}"
