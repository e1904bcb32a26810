"""LDM: diffusion on the latents of a first stage with a U-Net that attends to its condition (CORE, Table 11)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from corecli.base.errors import UsageError
from corecli.generators.parts.diffusion import Diffusion
from corecli.generators.parts.latent import LatentConfig, first_stage_of
from corecli.nets.latent_unet import LatentUnet
from corecli.nets.unet import norm_groups_for

DIFFUSERS = True  # diffusers has classes for its network
FIRST_STAGE = "required"
TINY = {  # fields of a small network, for tests
    "image_size": 16,
    "channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "head_channels": 16,
    "context_dim": 16,
}


@dataclass(frozen=True, kw_only=True)
class SharedConfig(LatentConfig):
    """By default, latent diffusion learns no variance and uses the schedule that it calls linear."""

    learn_sigma: bool | None = False
    schedule: str = "scaled_linear"


@dataclass(frozen=True, kw_only=True)
class Config(SharedConfig):
    """The defaults are CORE's Table 11, for latents of 32 x 32.

    attention_resolutions: sides of the latents at which blocks have attention; the middle block always has.
    head_channels: channels per attention head, a divisor of the widths with attention.
    context_dim: dimensions of the tokens to which blocks attend. With 0, the condition is added to the time embedding
    and blocks have self-attention only, as without a condition.
    norm_groups: groups of every GroupNorm; None means as many as fit, and is replaced in the built generator's config.
    """

    channels: int = 256
    channel_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 32
    context_dim: int = 256
    norm_groups: int | None = None
    dropout: float = 0.0


def build(config: Config) -> Diffusion:
    """Build a generator with new weights from torch's global generator.

    Errors: UsageError if sizes, widths, heads or condition do not fit together, or without a first stage.
    """
    stage = first_stage_of(config)
    if stage is None:
        hint = "give --first-stage; train one with --arch autoencoder"
        raise UsageError("latent diffusion needs a first stage", hint=hint)
    channels, side, _ = stage.data_shape
    groups = config.norm_groups or norm_groups_for(config.channels, config.channel_mult)
    config = dataclasses.replace(
        config,
        norm_groups=groups,
        context_dim=0 if config.condition == "none" else config.context_dim,
        channel_mult=tuple(config.channel_mult),
        attention_resolutions=tuple(config.attention_resolutions),
    )
    network = LatentUnet(
        image_size=side,
        in_channels=channels,
        out_channels=config.out_channels(channels),
        channels=config.channels,
        channel_mult=config.channel_mult,
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=config.attention_resolutions,
        head_channels=config.head_channels,
        norm_groups=groups,
        dropout=config.dropout,
        context_dim=config.context_dim,
        takes_vector=config.condition != "none",
    )
    attends = config.context_dim > 0
    generator = Diffusion(config, network, width=network.width, first_stage=stage, attends=attends)
    if config.context_dim:
        start_at_unit_scale(generator.conditioning)
    return generator


def start_at_unit_scale(conditioning: Any) -> None:
    """Initialize the map from conditions to tokens so that entries of tokens have about unit scale, as in RCG.

    With zero-initialized tokens, attention needs five times as many steps to use them. A new model ignores its
    condition all the same, because the output layer of its attention is zero.
    """
    nn.init.normal_(conditioning.linear.weight, std=1 / math.sqrt(conditioning.linear.in_features))
