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
    """Latent diffusion learns no variance, on the schedule it calls linear."""

    learn_sigma: bool | None = False
    schedule: str = "scaled_linear"


@dataclass(frozen=True, kw_only=True)
class Config(SharedConfig):
    """The defaults are CORE's Table 11, on the latents of a first stage, 32 a side.

    attention_resolutions: sides in latents at which blocks attend; the middle block always does.
    head_channels: channels of an attention head; it divides the widths that attend.
    context_dim: dimensions of the tokens by which blocks are told the condition; 0: it joins the time embedding, and
    blocks attend to themselves alone, as they do without a condition.
    norm_groups: groups of every GroupNorm; None chooses, and the built generator's config says what.
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
    """A generator with new weights, drawn from torch's global generator.

    Errors: UsageError when sizes, widths, heads or the choice of condition do not fit together, or without a first
    stage.
    """
    stage = first_stage_of(config)
    if stage is None:
        hint = "name one, or train it: --arch autoencoder"
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
    """Let tokens begin with entries of about unit scale, as RCG's, which are the features themselves, have.

    From zero, as vectors that join the time embedding begin, attention takes five times the steps to use them; that a
    new model ignores its condition is seen to by the zeroed way out of its attention.
    """
    nn.init.normal_(conditioning.linear.weight, std=1 / math.sqrt(conditioning.linear.in_features))
