"""ADM: pixel diffusion with the U-Net of guided-diffusion (Dhariwal and Nichol 2021; CORE, Table 10)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from corecli.generators.parts.diffusion import CHANNELS, Diffusion, DiffusionConfig
from corecli.nets.unet import AdmUnet, norm_groups_for

DIFFUSERS = True  # diffusers has classes for its network
TINY = {  # fields of a small network, for tests
    "image_size": 16,
    "learn_sigma": False,
    "channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (8,),
    "head_channels": 32,
    "dropout": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Config(DiffusionConfig):
    """The defaults are CORE's Table 10 for CIFAR, unconditional.

    attention_resolutions: sizes in px at which blocks have attention; the middle block always has.
    head_channels: channels per attention head, a divisor of the widths with attention.
    norm_groups: groups of every GroupNorm; None means as many as fit, and is replaced in the built generator's config.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    norm_groups: int | None = None
    dropout: float = 0.1


def build(config: Config) -> Diffusion:
    """Build a generator with new weights from torch's global generator.

    Errors: UsageError if image size, widths, heads or condition do not fit together.
    """
    groups = config.norm_groups or norm_groups_for(config.channels, config.channel_mult)
    config = dataclasses.replace(
        config,
        norm_groups=groups,
        channel_mult=tuple(config.channel_mult),
        attention_resolutions=tuple(config.attention_resolutions),
    )
    network = AdmUnet(
        image_size=config.image_size,
        in_channels=CHANNELS,
        out_channels=config.out_channels(CHANNELS),
        channels=config.channels,
        channel_mult=config.channel_mult,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        head_channels=config.head_channels,
        norm_groups=groups,
        dropout=config.dropout,
        takes_vector=config.condition != "none",
    )
    return Diffusion(config, network, width=network.width)
