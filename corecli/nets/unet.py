"""The ADM U-Net of guided-diffusion, expressed with diffusers' UNet2DModel."""

from __future__ import annotations

import math

import torch
from torch import nn

from corecli.base.errors import UsageError

MAX_NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 4


class AdmUnet(nn.Module):
    """(x [B, C, S, S], t [B], optional vector [B, width]) -> [B, out_channels, S, S] (Dhariwal and Nichol 2021).

    Equal to guided-diffusion's network in parameters, initialization and output: BigGAN up and down blocks, scale and
    shift by the time embedding, to which the vector is added. Norms compute in float32 under autocast, and so does the
    softmax inside PyTorch's fused attention. Errors: UsageError when sizes do not fit together.
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
        from diffusers.models.unets.unet_2d import UNet2DModel

        widths = tuple(channels * m for m in channel_mult)
        has_attention = [image_size >> level in attention_resolutions for level in range(len(widths))]
        check_widths(image_size, widths, has_attention, head_channels, norm_groups)
        down = tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in has_attention)
        up = tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(has_attention))
        self.width = 4 * widths[0]  # of the time embedding
        self.unet = UNet2DModel(
            sample_size=image_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down,
            up_block_types=up,
            block_out_channels=widths,
            layers_per_block=num_res_blocks,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=head_channels,
            norm_num_groups=norm_groups,
            attn_norm_num_groups=norm_groups,  # without it the middle attention has no norm
            dropout=dropout,
            class_embed_type="identity" if takes_vector else None,
        )
        zero_last_layers(self.unet)

    def forward(self, x: torch.Tensor, t: torch.Tensor, vector: torch.Tensor | None = None) -> torch.Tensor:
        """The network's output; `vector` is required if and only if the network takes one."""
        return self.unet(x, t, class_labels=vector, return_dict=False)[0]


def zero_last_layers(unet: nn.Module) -> None:
    """Zero the last layer of every residual branch and of the network, as guided-diffusion does and diffusers not."""
    for name, module in unet.named_modules():
        if name.endswith((".conv2", ".to_out.0")) or name == "conv_out":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def norm_groups_for(channels: int, channel_mult: tuple[int, ...]) -> int:
    """The most groups, up to ADM's 32, that divide every width and leave a group at least 4 channels if possible."""
    common = math.gcd(*(channels * m for m in channel_mult))
    most = min(MAX_NORM_GROUPS, max(1, common // MIN_GROUP_CHANNELS))
    return max(n for n in range(1, most + 1) if common % n == 0)


def check_widths(
    image_size: int, widths: tuple[int, ...], has_attention: list[bool], head_channels: int, norm_groups: int
) -> None:
    """Refuse sizes that a U-Net of these levels cannot halve, and heads or groups that do not divide its widths.

    Errors: UsageError.
    """
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
