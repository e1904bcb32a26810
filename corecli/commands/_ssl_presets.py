"""The presets of `train-ssl`: published recipes, each value with its source."""

from __future__ import annotations

from typing import Any

from corecli.base.config import Preset

# CORE Table 9, column CF-10/100. Its temperature, 0.2, is simclr's default, so that the preset serves other methods
# too; LARS's eta and clip, which it does not state, and the warm-up are those of solo-learn's CIFAR recipe.
_SIMCLR_CIFAR: dict[str, Any] = {
    "method": "simclr",
    "backbone": "resnet50",
    "stem": "cifar",
    "projector_hidden": 2048,
    "projector_dim": 128,
    "optimizer": "lars",
    "weight_decay": 1e-4,
    "batch_size": 512,
    "lr": 0.4,
    "augment": ("strong",),
    "warmup": "10ep",
    "steps": "100000",  # CORE trains for 100K steps (section 4.2, Figure 3)
}
PRESETS: dict[str, Preset] = {
    "simclr-cifar": _SIMCLR_CIFAR,
    # G2R: the same training on the mixture with the milder augmentation of CORE Table 12; `inflate` sets its N = 2.
    "core-cifar": {**_SIMCLR_CIFAR, "augment": ("weak",)},
    # The smallest encoder that reads 8- to 32-pixel images within a minute of one CPU core.
    "tiny": {
        "method": "simclr",
        "backbone": "resnet10-tiny",
        "projector_hidden": 128,
        "projector_dim": 64,
        "optimizer": "adamw",
        "weight_decay": 1e-4,
        "batch_size": 128,
        "lr": 2e-3,
        "steps": "500",
    },
}
