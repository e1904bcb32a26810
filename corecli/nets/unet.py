"""The ADM U-Net of guided-diffusion, and the skeleton that it shares with latent diffusion's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.residual import Attend, Attention, Downsample, Level, Middle, Residual, Upsample

MAX_NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 4
NORM_EPS = 1e-5
_MAX_PERIOD = 10_000  # of the time embedding


class Unet(nn.Module):
    """(x [B, C, S, S], t [B], optional vector [B, 4 widths[0]] or context [B, L, D]) -> [B, out_channels, S, S].

    The vector is added to the time embedding; attention layers may attend to the context.

    attend: maker of each level's attention layers, given their channels, or None; middle: that of the middle block.
    biggan: residual blocks change the size, and the time embedding scales and shifts; otherwise convolutions change the
    size, and the time embedding is added.
    Parameters have the names of diffusers' UNet2DModel and UNet2DConditionModel.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        attend: Sequence[Attend | None],
        middle: Attend,
        norm_groups: int,
        dropout: float,
        biggan: bool = False,
    ) -> None:
        super().__init__()
        time_dim, levels = 4 * widths[0], range(len(widths))
        residual = partial(
            Residual, groups=norm_groups, eps=NORM_EPS, time_dim=time_dim, dropout=dropout, scale_shift=biggan
        )

        def resize(name: str, width: int) -> tuple[str, Any]:
            if biggan:
                return name, partial(residual, width, width, resize="down" if name == "downsamplers" else "up")
            return name, partial(Downsample if name == "downsamplers" else Upsample, width)

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], time_dim)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        for i in levels:
            channels = [(widths[max(i - 1, 0)], widths[i]), *[(widths[i], widths[i])] * (num_res_blocks - 1)]
            last = None if i == levels[-1] else resize("downsamplers", widths[i])
            self.down_blocks.append(Level(channels, residual=residual, attend=attend[i], resize=last))
        self.mid_block = Middle(widths[-1], residual=residual, attend=middle)
        for i in reversed(levels):
            inputs = [widths[min(i + 1, levels[-1])], *[widths[i]] * num_res_blocks]
            skips = [*[widths[i]] * num_res_blocks, widths[max(i - 1, 0)]]
            channels = [(x + skip, widths[i]) for x, skip in zip(inputs, skips, strict=True)]
            last = None if i == 0 else resize("upsamplers", widths[i])
            self.up_blocks.append(Level(channels, residual=residual, attend=attend[i], resize=last))
        self.conv_norm_out = nn.GroupNorm(norm_groups, widths[0], eps=NORM_EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, *, vector: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        embedding = self.time_embedding(t.expand(len(x)))
        embedding = embedding if vector is None else embedding + vector
        x = self.conv_in(x)
        skips = [x]
        for level in cast(list[Level], self.down_blocks):
            skips.extend(level.down(skips[-1], embedding, context))
        x = self.mid_block(skips[-1], embedding, context)
        for level in cast(list[Level], self.up_blocks):
            x = level.up(x, skips, embedding, context)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


class TimeEmbedding(nn.Module):
    """t [B] -> [B, time_dim]: cosines and sines of `width` / 2 frequencies from 1 to 1 / 10,000, through an MLP."""

    def __init__(self, width: int, time_dim: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, time_dim)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(time_dim, time_dim)

    def forward(self, t: Tensor) -> Tensor:
        half = self.width // 2
        exponent = -math.log(_MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t[:, None].float() * torch.exp(exponent)[None, :]
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        waves = nn.functional.pad(waves, (0, self.width % 2))
        return self.linear_2(self.act(self.linear_1(waves)))


class AdmUnet(nn.Module):
    """(x [B, C, S, S], t [B], optional vector [B, width]) -> [B, out_channels, S, S] (Dhariwal and Nichol 2021).

    Equal to guided-diffusion's network in parameters, initialization and output: BigGAN up and down blocks, scale and
    shift by the time embedding, to which the vector is added. Norms compute in float32 under autocast, and so does the
    softmax inside PyTorch's fused attention.

    Errors: UsageError if sizes do not fit together.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        channels: int,
        channel_mult: tuple[int, ...],
        num_res_blocks: int,
        attention_resolutions: tuple[int, ...],
        head_channels: int,
        norm_groups: int,
        dropout: float,
        takes_vector: bool,
    ) -> None:
        super().__init__()
        widths = tuple(channels * m for m in channel_mult)
        attends = [image_size >> level in attention_resolutions for level in range(len(widths))]
        check_widths(image_size, widths, attends, head_channels, norm_groups)
        self.width = 4 * widths[0]  # of the time embedding
        attention = self_attention(head_channels, norm_groups)
        self.unet = Unet(
            in_channels=in_channels,
            out_channels=out_channels,
            widths=widths,
            num_res_blocks=num_res_blocks,
            attend=[attention if attend else None for attend in attends],
            middle=attention,
            norm_groups=norm_groups,
            dropout=dropout,
            biggan=True,
        )
        zero_layers(self.unet, (".conv2", ".to_out.0"))
        down = tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends)
        up = tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends))
        self.takes_vector = takes_vector
        self.diffusers_config: dict[str, Any] = {  # of the same network as a UNet2DModel
            "sample_size": image_size,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "down_block_types": down,
            "up_block_types": up,
            "block_out_channels": widths,
            "layers_per_block": num_res_blocks,
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": head_channels,
            "norm_num_groups": norm_groups,
            "attn_norm_num_groups": norm_groups,  # without it the middle attention has no norm
            "dropout": dropout,
            "class_embed_type": "identity" if takes_vector else None,
        }

    def forward(self, x: Tensor, t: Tensor, vector: Tensor | None = None) -> Tensor:
        """Return the output; `vector` is required if and only if the network was built with `takes_vector`."""
        assert (vector is not None) == self.takes_vector, "the network and the vector do not fit"
        return self.unet(x, t, vector=vector)


def self_attention(head_channels: int, norm_groups: int) -> Attend:
    """Return a maker of attention layers over a map, with heads of `head_channels` channels."""
    return lambda channels: Attention(channels, heads=channels // head_channels, groups=norm_groups, eps=NORM_EPS)


def zero_layers(unet: Unet, last: tuple[str, ...]) -> None:
    """Set the last layers of branches (whose names end with one of `last`) and of the network to zero."""
    for name, module in unet.named_modules():
        if name.endswith(last) or name == "conv_out":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def norm_groups_for(channels: int, channel_mult: tuple[int, ...]) -> int:
    """Return the most groups, up to 32 (ADM), that divide every width; with at least 4 channels each if possible."""
    common = math.gcd(*(channels * m for m in channel_mult))
    most = min(MAX_NORM_GROUPS, max(1, common // MIN_GROUP_CHANNELS))
    return max(n for n in range(1, most + 1) if common % n == 0)


def check_widths(
    image_size: int, widths: tuple[int, ...], has_attention: list[bool], head_channels: int, norm_groups: int
) -> None:
    """Raise UsageError for sizes that cannot be halved at every level, and heads or groups that divide no width."""
    halvings = len(widths) - 1
    if image_size % 2**halvings or image_size < 2**halvings:
        raise UsageError(
            f"images of {image_size} px cannot be halved {halvings} times",
            hint=f"use a multiple of {2**halvings} px or fewer entries in channel_mult",
        )
    attended = {width for width, attends in zip(widths, has_attention, strict=True) if attends} | {widths[-1]}
    for width in sorted(attended):
        if width % head_channels:
            common = math.gcd(*attended)
            raise UsageError(
                f"heads of {head_channels} channels do not divide attention over {width} channels",
                hint=f"use head_channels {common} or a divisor of it",
            )
    if math.gcd(*widths) % norm_groups:
        raise UsageError(f"{norm_groups} norm groups do not divide widths {', '.join(map(str, widths))}")
