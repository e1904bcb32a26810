"""The presets of `train-gen`: published configurations with their sources, and small networks for a first try."""

from __future__ import annotations

from corecli.base.config import Preset

# The network of CORE's Table 10, except for its dropout.
_TABLE_10 = (
    "channels=128",
    "num_res_blocks=3",
    "channel_mult=1,2,2,2",
    "attention_resolutions=16,8",
    "head_channels=64",
)
_ICGAN_96: Preset = {
    "arch": "icgan",
    "set": (
        "channels=96",
        "attention_px=64",
        "neighbours=50",
        "augment=none",
        "ema_start=20000",
        "discriminator_lr=1e-4",
    ),
    "ema_decay": 0.9999,
    "lr": 4e-5,
    "batch_size": 2048,
    "steps": 500_000,
}
_DIT: Preset = {
    "arch": "dit",
    "image_size": 256,
    "learn_sigma": True,
    "schedule": "linear",
    "diffusion_steps": 1000,
    "ema_decay": 0.9999,
    "lr": 1e-4,
    "clip": 0.0,
    "batch_size": 256,
}
_FIRST_STAGE: Preset = {"arch": "autoencoder", "image_size": 256, "lr": 4.3e-4, "batch_size": 96, "steps": 500_000}
_TINY: Preset = {"ema_decay": 0.998, "lr": 1e-3, "batch_size": 64, "steps": 1000}
PRESETS: dict[str, Preset] = {
    # CORE, Table 10, which states no learning rate, batch size or number of steps. Those are from IDDPM's README for
    # CIFAR-10 (500K steps of 128 images); the EMA decay, schedule and dropout are from Table 10.
    "adm-cifar": {
        "arch": "adm",
        "image_size": 32,
        "set": (*_TABLE_10, "dropout=0.1"),
        "learn_sigma": True,
        "schedule": "linear",
        "diffusion_steps": 1000,
        "ema_decay": 0.999,
        "lr": 1e-4,
        "batch_size": 128,
        "steps": 500_000,
    },
    # IC-GAN's icgan_res64.json. The number of steps is ours; IC-GAN stops after 50 tests without improvement.
    "icgan-64": {
        "arch": "icgan",
        "image_size": 64,
        "set": ("neighbours=50", "augment=none", "ema_start=20000"),
        "ema_decay": 0.9999,
        "lr": 1e-4,
        "batch_size": 256,
        "steps": 500_000,
    },
    # icgan_res128.json and icgan_res256.json: 32 GPUs with 64 images each, or with 4 times 16.
    "icgan-128": {**_ICGAN_96, "image_size": 128},
    "icgan-256": {**_ICGAN_96, "image_size": 256},
    # CORE, Table 11: RCG's cin-ldm-vq-f8-repcond.yaml on the latents of vq-f8, with RCG's learning rate, weight decay
    # and 40 epochs of ImageNet. Tiny-ImageNet is trained at 256 px, too.
    "ldm-256": {
        "arch": "ldm",
        "image_size": 256,
        "set": (
            "channels=256",
            "num_res_blocks=2",
            "channel_mult=1,2,4",
            "attention_resolutions=32,16,8",
            "head_channels=32",
            "context_dim=256",
        ),
        "schedule": "scaled_linear",
        "diffusion_steps": 1000,
        "ema_decay": 0.9999,
        "lr": 6.4e-5,
        "weight_decay": 0.01,
        "batch_size": 256,
        "steps": 200_000,
    },
    # DiT, section 4 and Table 4, on the latents of kl-f8. CORE (Table 4) and RCG use L/2 and state no number of steps.
    "dit-l-2": {**_DIT, "set": ("size=l", "patch=2"), "steps": 400_000},
    "dit-xl-2": {**_DIT, "set": ("size=xl", "patch=2"), "steps": 7_000_000},
    # First stages of latent diffusion (LDM, Table 8): f = 8 and d = 4, with a KL (Stable Diffusion's) or 16,384 codes.
    # LDM's discriminator is not implemented; --set perceptual=FILE adds the rest of its loss. The learning rate is
    # LDM's 4.5e-6 per image of a batch.
    "kl-f8": {
        **_FIRST_STAGE,
        "set": ("kind=kl", "channels=128", "channel_mult=1,2,4,4", "num_res_blocks=2", "latent_channels=4"),
    },
    "vq-f8": {
        **_FIRST_STAGE,
        "set": (
            "kind=vq",
            "channels=128",
            "channel_mult=1,2,2,4",
            "num_res_blocks=2",
            "latent_channels=4",
            "attention_levels=1",
            "codes=16384",
        ),
    },
    # EDM, Table 7, column CIFAR-10: 200M images and an average with a half-life of 0.5M images. The network is that of
    # CORE's Table 10, which is as large as EDM's DDPM++; the learning rate is constant, and there is no augmentation.
    "edm-cifar": {
        "arch": "adm",
        "objective": "edm",
        "image_size": 32,
        "set": (*_TABLE_10, "dropout=0.13"),
        "ema_decay": 0.99929,
        "lr": 1e-3,
        "batch_size": 512,
        "steps": 390_625,
    },
    # A small network that shows R2G on digits of 8 px: 1,000 steps take two minutes on one CPU core.
    "tiny": {
        "arch": "adm",
        "set": (
            "channels=32",
            "num_res_blocks=1",
            "channel_mult=1,2",
            "attention_resolutions=4",
            "head_channels=32",
            "dropout=0.0",
        ),
        "learn_sigma": False,
        **_TINY,
    },
    # The other families at about the same cost per step, on images of 16 px.
    "tiny-dit": {**_TINY, "arch": "dit", "set": ("size=tiny", "patch=2"), "learn_sigma": False},
    "tiny-autoencoder": {**_TINY, "arch": "autoencoder", "set": ("channels=32", "channel_mult=1,2")},
    "tiny-ldm": {
        **_TINY,
        "arch": "ldm",
        "set": (
            "channels=64",
            "num_res_blocks=1",
            "channel_mult=1,2",
            "attention_resolutions=4",
            "head_channels=32",
            "context_dim=64",
        ),
    },
    "tiny-icgan": {**_TINY, "arch": "icgan", "set": ("channels=16", "attention_px=8"), "lr": 4e-4},
}
