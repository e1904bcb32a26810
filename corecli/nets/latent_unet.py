"""The U-Net of latent diffusion (Rombach et al. 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.residual import Attend, Attention
from corecli.nets.unet import Unet, check_widths, self_attention, zero_layers

_NORM_EPS = 1e-6  # of the norm before a transformer
_MLP_RATIO = 4


class LatentUnet(nn.Module):
    """(x [B, C, S, S], t [B], optional tokens [B, L, context_dim] or vector [B, width]) -> [B, out_channels, S, S].

    With `context_dim`, every attention layer is a transformer that attends to the map itself and to the tokens; one
    vector [B, context_dim] counts as one token (RCG). Without, maps attend to themselves only, and a vector is added to
    the time embedding. Equal to latent diffusion's network in parameters and initialization. With one token, the
    softmax over tokens is 1, so queries and keys of the cross-attention get no gradient.

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
        context_dim: int,
        takes_vector: bool,
    ) -> None:
        super().__init__()
        widths = tuple(channels * m for m in channel_mult)
        attends = [image_size >> level in attention_resolutions for level in range(len(widths))]
        check_widths(image_size, widths, attends, head_channels, norm_groups)
        if context_dim and not takes_vector:
            raise UsageError("cross-attention needs a condition to attend to", hint="use context_dim 0")
        self.context_dim, self.takes_vector = context_dim, takes_vector
        self.width = context_dim or 4 * widths[0]  # of the time embedding
        attention = self_attention(head_channels, norm_groups)
        if context_dim:
            attention = _cross_attention(head_channels, norm_groups, context_dim)
        self.unet = Unet(
            in_channels=in_channels,
            out_channels=out_channels,
            widths=widths,
            num_res_blocks=num_res_blocks,
            attend=[attention if attend else None for attend in attends],
            middle=attention,
            norm_groups=norm_groups,
            dropout=dropout,
        )
        zero_layers(self.unet, (".conv2", ".proj_out" if context_dim else ".to_out.0"))
        shape = {
            "sample_size": image_size,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "block_out_channels": widths,
            "layers_per_block": num_res_blocks,
            "norm_num_groups": norm_groups,
            "dropout": dropout,
        }
        self.diffusers_config = {**shape, **self._blocks_of_diffusers(attends, widths, head_channels)}

    def _blocks_of_diffusers(self, attends: list[bool], widths: tuple[int, ...], head_channels: int) -> dict[str, Any]:
        """Return the arguments of diffusers' UNet2DConditionModel or UNet2DModel that describe the blocks."""
        kind = "CrossAttn" if self.context_dim else "Attn"
        blocks: dict[str, Any] = {
            "down_block_types": tuple(f"{kind if a else ''}DownBlock2D" for a in attends),
            "up_block_types": tuple(f"{kind if a else ''}UpBlock2D" for a in reversed(attends)),
        }
        if self.context_dim:  # attention_head_dim is the number of heads there, in spite of its name
            heads = tuple(width // head_channels for width in widths)
            return {**blocks, "attention_head_dim": heads, "cross_attention_dim": self.context_dim}
        embedding = "identity" if self.takes_vector else None
        return {**blocks, "attention_head_dim": head_channels, "class_embed_type": embedding}

    def forward(self, x: Tensor, t: Tensor, vector: Tensor | None = None) -> Tensor:
        """Return the output; a condition is required if and only if the network was built with `takes_vector`."""
        assert (vector is not None) == self.takes_vector, "the network and the condition do not fit"
        if vector is None or not self.context_dim:
            return self.unet(x, t, vector=vector)
        return self.unet(x, t, context=vector[:, None] if vector.ndim == 2 else vector)


class Transformer(nn.Module):
    """(x [B, C, H, W], context [B, L, context_dim]) -> [B, C, H, W]: one transformer block over the places of a map."""

    def __init__(self, channels: int, *, head_channels: int, norm_groups: int, context_dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=_NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, channels // head_channels, context_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            h = block(h, context)
        h = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        return self.proj_out(h) + x


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a gated MLP over tokens [B, T, C], each after a LayerNorm."""

    def __init__(self, channels: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads=heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads=heads, context_dim=context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = GatedMlp(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class GatedMlp(nn.Module):
    """Two layers with a GEGLU between (Shazeer 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gate(channels, _MLP_RATIO * channels), nn.Dropout(0.0)])
        self.net.append(nn.Linear(_MLP_RATIO * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Gate(nn.Module):
    """A linear map, one half of whose output gates the other by a GELU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels_in, 2 * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


def _cross_attention(head_channels: int, norm_groups: int, context_dim: int) -> Attend:
    """Return a maker of transformers that attend to a context."""
    return partial(Transformer, head_channels=head_channels, norm_groups=norm_groups, context_dim=context_dim)
