"""Presets of `probe`: the published evaluation protocols."""

from __future__ import annotations

from corecli.base.config import Preset

# Published linear evaluations; learning rates are per 256 images of a step.
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
