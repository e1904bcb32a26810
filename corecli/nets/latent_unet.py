"""The U-Net of latent diffusion (Rombach et al. 2022), expressed with diffusers' U-Nets."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from corecli.base.errors import UsageError
from corecli.nets.unet import check_widths


class LatentUnet(nn.Module):
    """(x [B, C, S, S], t [B], optional tokens [B, L, context_dim] or vector [B, width]) -> [B, out_channels, S, S].

    With `context_dim` blocks are transformers that attend to themselves and to the tokens; one vector
    [B, context_dim] is one token (RCG). Without, blocks attend to themselves alone, and a vector is added to the time
    embedding. Equal to latent diffusion's network in parameters and initialization. With one token the softmax over
    tokens is 1, so queries and keys of the cross-attention learn nothing. Errors: UsageError when sizes do not fit.
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
        context_dim: int,
        takes_vector: bool,
    ) -> None:
        super().__init__()
        widths = tuple(channels * m for m in channel_mult)
        attends = [image_size >> level in attention_resolutions for level in range(len(widths))]
        check_widths(image_size, widths, attends, head_channels, norm_groups)
        shape: dict[str, Any] = {
            "sample_size": image_size,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "block_out_channels": widths,
            "layers_per_block": num_res_blocks,
            "norm_num_groups": norm_groups,
            "dropout": dropout,
        }
        self.context_dim, self.takes_vector = context_dim, takes_vector
        if context_dim:
            if not takes_vector:
                raise UsageError("cross-attention needs a condition to attend to", hint="use context_dim 0")
            self.width = context_dim
            self.unet = _cross_attention(attends, [width // head_channels for width in widths], context_dim, shape)
        else:
            self.width = 4 * widths[0]  # of the time embedding
            self.unet = _self_attention(attends, head_channels, takes_vector, shape)
        zero_last_layers(self.unet)

    def forward(self, x: torch.Tensor, t: torch.Tensor, vector: torch.Tensor | None = None) -> torch.Tensor:
        """The network's output; a condition is required if and only if the network takes one."""
        if not self.context_dim:
            return self.unet(x, t, class_labels=vector, return_dict=False)[0]
        assert vector is not None, "cross-attention needs a condition"
        tokens = vector[:, None] if vector.ndim == 2 else vector
        return self.unet(x, t, tokens, return_dict=False)[0]


def zero_last_layers(unet: nn.Module) -> None:
    """Zero the last layer of every residual block, transformer or attention, and of the network, as LDM does."""
    has_transformers = any(name.endswith(".proj_out") for name, _ in unet.named_modules())
    last = (".conv2", ".proj_out" if has_transformers else ".to_out.0")
    for name, module in unet.named_modules():
        if name.endswith(last) or name == "conv_out":
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


def _cross_attention(attends: list[bool], heads: list[int], context_dim: int, shape: dict[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(
        **shape,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=cast(Any, tuple(heads)),  # the number of heads, in spite of its name
        cross_attention_dim=context_dim,
    )


def _self_attention(attends: list[bool], head_channels: int, takes_vector: bool, shape: dict[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    return UNet2DModel(
        **shape,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=head_channels,
        class_embed_type="identity" if takes_vector else None,
    )
