"""The presets of `train-ssl`: published settings, each value with its source.

A name is METHOD-SOURCE. The sources are: `cifar`, CORE if it has the method, else solo-learn for a ResNet-18 on CIFAR;
`core`, CORE; `imagenet`, the method's paper or solo-learn; `genssl` and `mixdiff`, these papers, which pair real and
synthetic images; `paper` and `reference`, the text of SynCLR and its released code. Learning rates are those that the
optimizer uses: base x batch / 256 where the source scales them.
"""

from __future__ import annotations

from typing import Any

from corecli.base.config import Preset

Values = dict[str, Any]

# LARS as in solo-learn on CIFAR, and as in the code of BYOL and Barlow Twins on ImageNet, without LARC's limit.
_LARC: Values = {"optimizer": "lars", "lars_eta": 0.02, "lars_clip": True}
_LARS: Values = {"optimizer": "lars", "lars_eta": 0.001, "lars_clip": False}
# Crops of 224 px from whole photographs; evaluation on the center of 256 px (every paper with ImageNet).
_PHOTOGRAPHS: Values = {"view_px": 224, "eval_resize": 256}
_WARM: Values = {"warmup": "10ep"}  # solo-learn; GenSSL, Table 6

# CORE Table 9, column CF-10/100. Its temperature, 0.2, is simclr's default and left out here, so that the preset fits
# other methods. CORE does not state eta and clip of LARS, nor the warm-up; they are solo-learn's for CIFAR.
_SIMCLR_CIFAR: Values = {
    **_LARC,
    **_WARM,
    "method": "simclr",
    "backbone": "resnet50",
    "stem": "cifar",
    "projector_hidden": 2048,
    "projector_dim": 128,
    "weight_decay": 1e-4,
    "batch_size": 512,
    "lr": 0.4,
    "augment": ("strong",),
    "steps": "100000",  # CORE trains for 100K steps (section 4.2, Figure 3)
}
# CORE Table 9, columns T-IN and IN-1K.
_SIMCLR_TINY_IMAGENET: Values = {
    **_SIMCLR_CIFAR, "projector_hidden": 4096, "projector_dim": 512, "batch_size": 1024, "lr": 1.2,
}  # fmt: skip
_SIMCLR_IMAGENET: Values = {
    **_SIMCLR_TINY_IMAGENET, **_PHOTOGRAPHS, "stem": "imagenet", "batch_size": 4096, "lr": 4.8, "weight_decay": 1e-6,
}  # fmt: skip

# solo-learn on CIFAR: ResNet-18, 1000 epochs of batches of 256; heads and momenta are the methods' defaults.
_SOLO_CIFAR: Values = {
    **_WARM,
    "backbone": "resnet18",
    "stem": "cifar",
    "batch_size": 256,
    "steps": "1000ep",
}
_MOCO_CIFAR: Values = {**_SOLO_CIFAR, "method": "moco", "optimizer": "sgd", "lr": 0.3, "weight_decay": 1e-4}
_MOCOV3_CIFAR: Values = {
    **_SOLO_CIFAR, **_LARC, "method": "mocov3", "lr": 0.3, "weight_decay": 1e-6, "augment": ("byol-cifar",),
}  # fmt: skip
_BYOL_CIFAR: Values = {
    **_SOLO_CIFAR, **_LARC, "method": "byol", "lr": 1.0, "weight_decay": 1e-5, "augment": ("byol-cifar",),
}  # fmt: skip
_SIMSIAM_CIFAR: Values = {
    **_SOLO_CIFAR, "method": "simsiam", "optimizer": "sgd", "lr": 0.5, "weight_decay": 1e-5, "augment": ("moco",),
}  # fmt: skip
_BARLOW_CIFAR: Values = {
    **_SOLO_CIFAR, **_LARC, "method": "barlow-twins", "lr": 0.3, "weight_decay": 1e-4, "augment": ("byol-cifar",),
}  # fmt: skip
_DINO_CIFAR: Values = {
    **_SOLO_CIFAR,
    **_LARC,
    "method": "dino",
    "lr": 0.3,
    "weight_decay": 1e-4,
    "views": "2g",  # solo-learn: two crops only
    "augment": ("byol-cifar",),
    "set": ("prototypes=4096", "momentum_start=0.9995", "warmup_epochs=0"),  # solo-learn: temperature 0.07 throughout
}
_SUPCON_CIFAR: Values = {
    **_SOLO_CIFAR, "method": "supcon", "optimizer": "sgd", "lr": 0.4, "weight_decay": 1e-5, "augment": ("strong",),
}  # fmt: skip

_RESNET50: Values = {**_WARM, **_PHOTOGRAPHS, "backbone": "resnet50", "stem": "imagenet"}
_MOCO_IMAGENET: Values = {  # MoCo v2, 200 epochs
    **_RESNET50,
    "method": "moco",
    "optimizer": "sgd",
    "lr": 0.03,
    "weight_decay": 1e-4,
    "batch_size": 256,
    "steps": "200ep",
    "warmup": "0",
    "projector_hidden": 2048,
    "projector_dim": 128,
    "set": ("queue_size=65536", "symmetric=false", "momentum_start=0.999"),
}
_MOCOV3_IMAGENET: Values = {  # MoCo v3's code, ResNet-50, 100 epochs: 0.6 x 4096 / 256
    **_RESNET50,
    **_LARS,
    "method": "mocov3",
    "lr": 9.6,
    "weight_decay": 1e-6,
    "batch_size": 4096,
    "steps": "100ep",
    "augment": ("mocov3",),
    "set": ("temperature=1.0",),  # the code's default, which its ResNet commands keep
}
_MOCOV3_VIT: Values = {  # MoCo v3's code, ViT-S, 300 epochs: 1.5e-4 x 4096 / 256
    **_PHOTOGRAPHS,
    "method": "mocov3",
    "backbone": "vit-small-moco/16",
    "optimizer": "adamw",
    "lr": 2.4e-3,
    "weight_decay": 0.1,
    "batch_size": 4096,
    "steps": "300ep",
    "warmup": "40ep",
    "augment": ("mocov3",),
    "set": ("temperature=0.2",),  # and the frozen patch embedding, by default
}
_BYOL_IMAGENET: Values = {  # solo-learn: 0.45 x 2048 / 256; it accumulates batches of 2 x 64
    **_RESNET50,
    **_LARS,
    "method": "byol",
    "lr": 3.6,
    "weight_decay": 1e-6,
    "batch_size": 2048,
    "steps": "100ep",
    "augment": ("byol",),
}
_SIMSIAM_IMAGENET: Values = {  # SimSiam, section 4: 0.05 x 512 / 256, no warm-up
    **_RESNET50,
    "method": "simsiam",
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 1e-4,
    "batch_size": 512,
    "steps": "100ep",
    "warmup": "0",
    "augment": ("moco",),
}
_BARLOW_IMAGENET: Values = {  # solo-learn: three layers of 4096, loss x 0.048, 0.8 x 256 / 256
    **_RESNET50,
    **_LARS,
    "method": "barlow-twins",
    "projector_hidden": 4096,
    "projector_dim": 4096,
    "lr": 0.8,
    "weight_decay": 1.5e-6,
    "batch_size": 256,
    "steps": "100ep",
    "augment": ("byol",),
    "set": ("scale=0.048",),
}
_DINO_IMAGENET: Values = {  # DINO's code, ViT-S/16, 100 epochs: 5e-4 x 1024 / 256
    **_PHOTOGRAPHS,
    "local_px": 96,
    "method": "dino",
    "backbone": "vit-small/16",
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "clip_grad": 3.0,  # the code clips each tensor by itself; here it is the norm of all
    "batch_size": 1024,
    "steps": "100ep",
    "warmup": "10ep",
    "drop_path": 0.1,
    "views": "2g8l",
    "augment": ("dino",),
    "set": ("prototypes=65536", "momentum_start=0.996"),
}

# StableRep's code: blr 2e-4 for 512 crops, AdamW (0.9, 0.98); 4 images for each of 2048 captions, as in SynCLR.
_STABLEREP: Values = {
    "method": "stablerep",
    "backbone": "vit-base/16",
    "optimizer": "adamw",
    "adam_beta2": 0.98,
    "lr": 3.2e-3,  # 2e-4 x 8192 / 512
    "weight_decay": 0.1,
    "batch_size": 8192,
    "images_per_group": 4,
    "views": "1g",
    "augment": ("moco",),
    "augment_set": ("shrink=0.05",),  # the released command
    "steps": "85000",  # SynCLR, section 4.1, for all of Tables 2 to 5
    "warmup": "8500",
}
# SynCLR, section 3.4 and its appendix.
_SYNCLR: Values = {
    "method": "synclr",
    "backbone": "vit-base/16",
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.04,
    "weight_decay_end": 0.2,
    "drop_path": 0.1,
    "batch_size": 8192,  # 2048 captions
    "images_per_group": 4,
    "views": "1g4l",
    "augment": ("synclr",),
    "steps": "85000",
    "warmup": "8500",  # not stated; in proportion to 80,000 of 500,000 steps it would be 13,600
    "set": ("prototypes=65536",),
}
_SYNCLR_L: Values = {"backbone": "vit-large/14", "lr": 1.5e-3, "drop_path": 0.4, "local_px": 98}
# Where SynCLR's released command and its defaults differ from the paper.
_SYNCLR_REFERENCE: Values = {
    **_SYNCLR,
    "projector_norm": "layer",
    "adam_beta2": 0.98,
    "lr": 2.4e-3,  # 1.5e-4 x 4096 / 256, with 4096 half of the images
    "weight_decay": 0.1,
    "weight_decay_end": None,
    "drop_path": 0.0,
    "steps": "15ep",
    "warmup": "0.5ep",
    "augment_set": ("shrink=0",),
    "set": ("temperature=0.1", "prototypes=8192"),
}
# For one CPU core, at 32 px; at 16 px with --backbone vit-micro-moco/2. The usual initialization is too small for 64
# channels at this learning rate: the class token attends to its patches only after hundreds of steps.
_SYNCLR_MICRO: Values = {
    "method": "synclr",
    "backbone": "vit-micro-moco/4",
    "projector_hidden": 512,
    "projector_dim": 64,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.04,
    "weight_decay_end": 0.2,
    "drop_path": 0.1,
    "batch_size": 64,
    "images_per_group": 4,
    "views": "1g4l",
    "augment": ("synclr",),
    "steps": "1000",
    "set": (
        "momentum_start=0.9",  # with so few steps, 0.994 would keep the first weights
        "prototypes=512",
        "predictor_hidden=512",
        "patch_hidden=256",
        "patch_dim=64",
        "warmup_steps=100",
    ),
}

# GenSSL pairs the real image with its generated variant: T0 on one view, p = 1 (Figure 4, right).
_GENSSL: Values = {"views": "real:1g,mixed:1g", "synthetic_probability": 1.0, "steps": "100ep"}
# MixDiff: view 0 real, view 1 its synthetic twin (section 3).
_MIXDIFF: Values = {"views": "real:1g,synthetic:1g", "steps": "100ep"}

# Trains on images of 8 to 32 px in a minute of one CPU core.
_TINY: Preset = {
    "method": "simclr",
    "backbone": "resnet10-tiny",
    "projector_hidden": 128,
    "projector_dim": 64,
    "optimizer": "adamw",
    "batch_size": 128,
    "lr": 2e-3,
    "steps": "500",
}
_READABLE = ("flip=0", "jitter=0", "grey=0", "blur=0", "crop=0.4,1")  # digits stay what they are
_IMAGE_LABELS: Preset = {"images_per_group": 1, "views": "2g", "batch_size": 4096, "set": ("label_by=image",)}
PRESETS: dict[str, Preset] = {
    "simclr-cifar": _SIMCLR_CIFAR,
    "simclr-tiny-imagenet": _SIMCLR_TINY_IMAGENET,
    "simclr-imagenet": _SIMCLR_IMAGENET,
    "moco-cifar": _MOCO_CIFAR,
    "moco-imagenet": _MOCO_IMAGENET,
    "mocov3-cifar": _MOCOV3_CIFAR,
    "mocov3-imagenet": _MOCOV3_IMAGENET,
    "mocov3-vit-imagenet": _MOCOV3_VIT,
    "byol-cifar": _BYOL_CIFAR,
    "byol-imagenet": _BYOL_IMAGENET,
    "simsiam-cifar": _SIMSIAM_CIFAR,
    "simsiam-imagenet": _SIMSIAM_IMAGENET,
    "barlow-twins-cifar": _BARLOW_CIFAR,
    "barlow-twins-imagenet": _BARLOW_IMAGENET,
    "dino-cifar": _DINO_CIFAR,
    "dino-imagenet": _DINO_IMAGENET,
    "supcon-cifar": _SUPCON_CIFAR,
    # G2R: the same training on the mixture, with the weak augmentation of CORE Table 12; `inflate` sets N = 2.
    "core-cifar": {**_SIMCLR_CIFAR, "augment": ("weak",)},
    "core-tiny-imagenet": {**_SIMCLR_TINY_IMAGENET, "augment": ("weak",)},
    "core-imagenet": {**_SIMCLR_IMAGENET, "augment": ("weak",)},  # with N = 1
    "moco-core": {**_MOCO_CIFAR, "steps": "100000", "augment": ("weak",)},
    "byol-core": {**_BYOL_CIFAR, "steps": "100000", "augment": ("byol-weak",)},  # its asymmetric variant
    "barlow-twins-core": {**_BARLOW_CIFAR, "steps": "100000", "augment": ("weak",)},
    # GenSSL, Tables 6 and 7, else solo-learn's defaults, which it follows.
    "simclr-genssl": {**_SIMCLR_IMAGENET, **_GENSSL, "batch_size": 1024, "lr": 1.2},
    "moco-genssl": {
        **_MOCO_IMAGENET,
        **_WARM,
        **_GENSSL,
        "lr": 0.3,
        "weight_decay": 3e-5,
        "projector_dim": 256,
        "set": ("queue_size=65536",),
    },
    # 0.2 x 16384 / 256: the released configuration accumulates 16 batches of 4 x 256, which the table does not state.
    "byol-genssl": {**_BYOL_IMAGENET, **_GENSSL, "batch_size": 16384, "lr": 12.8, "weight_decay": 1.5e-6},
    "simsiam-genssl": {
        **_SIMSIAM_IMAGENET,
        **_WARM,
        **_GENSSL,
        "projector_hidden": 4096,
        "projector_dim": 4096,
        "batch_size": 256,
        "lr": 0.5,
        "weight_decay": 1e-5,
        "augment": ("byol",),
    },
    "barlow-twins-genssl": {**_BARLOW_IMAGENET, **_GENSSL},
    # MixDiff, section 4 and its released configurations; simclr and barlow-twins are otherwise as on ImageNet.
    "simclr-mixdiff": {**_SIMCLR_IMAGENET, **_MIXDIFF},
    "barlow-twins-mixdiff": {**_BARLOW_IMAGENET, **_MIXDIFF},
    "dino-mixdiff": {
        **_DINO_IMAGENET,
        **_MIXDIFF,
        "backbone": "vit-base/16",
        "views": "real:1g6l,synthetic:1g2l",
        "batch_size": 512,
        "lr": 5e-4,
        "weight_decay": 4e-5,
        "weight_decay_end": None,
        "steps": "30ep",
        "set": ("prototypes=65536", "momentum_start=0.996", "teacher_temperature=0.04"),
    },
    "stablerep-paper": _STABLEREP,
    "synclr-paper": _SYNCLR,
    "synclr-paper-vit-l": {**_SYNCLR, **_SYNCLR_L},
    "synclr-reference": _SYNCLR_REFERENCE,
    "synclr-reference-vit-l": {**_SYNCLR_REFERENCE, **_SYNCLR_L, "lr": 2.4e-3, "drop_path": 0.0},
    "synclr-micro": _SYNCLR_MICRO,
    # SynCLR, Table 4: the steps from stablerep-paper to synclr-paper.
    "synclr-ema": {**_SYNCLR, "views": "1g", "set": ("ibot=0",)},
    "synclr-ema-ibot": {**_SYNCLR, "views": "1g"},
    "synclr-ema-crops": {**_SYNCLR, "set": ("ibot=0",)},
    # SynCLR, Table 5: SimCLR. That table's SynCLR, without teacher, patch loss and local views, is stablerep-paper.
    "stablerep-image": {**_STABLEREP, **_IMAGE_LABELS},
    # SynCLR, Table 5: cross-entropy; the paper does not state its values of AugReg.
    "stablerep-supervised": {**_STABLEREP, "method": "supervised", "images_per_group": 1},
    # The labels of stablerep-supervised in the loss of the others.
    "stablerep-class": {**_STABLEREP, "set": ("label_by=class",)},
    "tiny": _TINY,
    "tiny-digits": {**_TINY, "batch_size": 64, "steps": "600", "augment_set": _READABLE},
}
