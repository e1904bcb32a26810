"""The autoencoders of latent diffusion: with a KL penalty, with a codebook, and the tiny one of TAESD.

Constructors take the arguments of diffusers' classes of the same kind, and parameters have the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.nets.residual import Attend, Attention, Downsample, Level, Middle, Residual, Upsample

DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}  # value: whether the level attends
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
ACTIVATIONS = {"silu": nn.SiLU, "swish": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "mish": nn.Mish}
_EPS = 1e-6
_LOGVAR_RANGE = (-30.0, 20.0)


class KlAutoencoder(nn.Module):
    """An autoencoder whose latents follow a normal distribution at every place (LDM, Appendix G)."""

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        shape = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        self.encoder = Encoder(in_channels, 2 * latent_channels, down_block_types, *shape)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, *shape)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None

    def encode(self, x: Tensor) -> Tensor:
        """Return the means and standard deviations [B, 2 C, h, w] of latents of images in [-1, 1]."""
        h = self.encoder(x)
        mean, logvar = (h if self.quant_conv is None else self.quant_conv(h)).chunk(2, dim=1)
        return torch.cat((mean, torch.exp(0.5 * logvar.clamp(*_LOGVAR_RANGE))), dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents [B, C, h, w]."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


class VqAutoencoder(nn.Module):
    """An autoencoder whose latents are entries of a codebook (VQGAN; LDM, Appendix G)."""

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        latent_channels: int = 3,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        shape = (block_out_channels, layers_per_block, norm_num_groups, mid_block_add_attention)
        dim = latent_channels if vq_embed_dim is None else vq_embed_dim
        self.encoder = Encoder(in_channels, latent_channels, down_block_types, *shape)
        self.quant_conv = nn.Conv2d(latent_channels, dim, 1)
        self.quantize = Codebook(num_vq_embeddings, dim)
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, 1)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, *shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [B, C, h, w] of images in [-1, 1], before they are quantized."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents, each of which is replaced by its nearest code."""
        return self.decode_codes(self.quantize(z))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Return the images of codes [B, C, h, w]."""
        return self.decoder(self.post_quant_conv(codes))


class TinyAutoencoder(nn.Module):
    """A small autoencoder of convolutions alone (TAESD)."""

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[int] = (3, 3, 3, 1),
    ) -> None:
        super().__init__()
        widths = zip(encoder_block_out_channels, num_encoder_blocks, strict=True)
        self.encoder = TinyEncoder(in_channels, latent_channels, list(widths), ACTIVATIONS[act_fn])
        widths = zip(decoder_block_out_channels, num_decoder_blocks, strict=True)
        enlarge = partial(nn.Upsample, scale_factor=upsampling_scaling_factor, mode=upsample_fn)
        self.decoder = TinyDecoder(latent_channels, out_channels, list(widths), ACTIVATIONS[act_fn], enlarge)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [B, C, h, w] of images in [-1, 1]."""
        return self.encoder.layers(x.add(1).div(2))

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents, which are softly bounded by 3."""
        return self.decoder.layers(torch.tanh(z / 3) * 3).mul(2).sub(1)


class Encoder(nn.Module):
    """Images [B, C, S, S] -> [B, out_channels, S / 2^(levels - 1), ...]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: Sequence[str],
        widths: Sequence[int],
        num_res_blocks: int,
        norm_groups: int,
        middle_attends: bool,
    ) -> None:
        super().__init__()
        residual = partial(Residual, groups=norm_groups, eps=_EPS)
        attention = _one_head(norm_groups)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, kind in enumerate(block_types):
            channels = [(widths[max(i - 1, 0)], widths[i]), *[(widths[i], widths[i])] * (num_res_blocks - 1)]
            resize = ("downsamplers", partial(Downsample, widths[i], padding=0)) if i < len(widths) - 1 else None
            attend = attention if DOWN_BLOCKS[kind] else None
            self.down_blocks.append(Level(channels, residual=residual, attend=attend, resize=resize))
        self.mid_block = Middle(widths[-1], residual=residual, attend=attention if middle_attends else None)
        self.conv_norm_out = nn.GroupNorm(norm_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents [B, C, h, w] -> images [B, out_channels, h 2^(levels - 1), ...]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: Sequence[str],
        widths: Sequence[int],
        num_res_blocks: int,
        norm_groups: int,
        middle_attends: bool,
    ) -> None:
        super().__init__()
        residual = partial(Residual, groups=norm_groups, eps=_EPS)
        attention, widths = _one_head(norm_groups), list(reversed(widths))
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = Middle(widths[0], residual=residual, attend=attention if middle_attends else None)
        for i, kind in enumerate(block_types):
            channels = [(widths[max(i - 1, 0)], widths[i]), *[(widths[i], widths[i])] * num_res_blocks]
            resize = ("upsamplers", partial(Upsample, widths[i])) if i < len(widths) - 1 else None
            attend = attention if UP_BLOCKS[kind] else None
            self.up_blocks.append(Level(channels, residual=residual, attend=attend, resize=resize))
        self.conv_norm_out = nn.GroupNorm(norm_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Codebook(nn.Module):
    """Latents [B, C, h, w] -> the nearest of `num` codes at every place, with a straight-through gradient."""

    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num, dim)
        self.embedding.weight.data.uniform_(-1 / num, 1 / num)

    def forward(self, z: Tensor) -> Tensor:
        z = z.permute(0, 2, 3, 1).contiguous()
        nearest = torch.cdist(z.flatten(0, 2), self.embedding.weight).argmin(dim=1)
        codes = self.embedding(nearest).view(z.shape)
        return (z + (codes - z).detach()).permute(0, 3, 1, 2).contiguous()


class TinyEncoder(nn.Module):
    """The layers of a TAESD encoder; levels: (width, blocks) of each."""

    def __init__(
        self, in_channels: int, out_channels: int, levels: list[tuple[int, int]], activation: type[nn.Module]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (width, num_blocks) in enumerate(levels):
            halving = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False) if i else None
            layers.append(halving or nn.Conv2d(in_channels, width, 3, padding=1))
            layers.extend(TinyBlock(width, activation) for _ in range(num_blocks))
        layers.append(nn.Conv2d(levels[-1][0], out_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)


class TinyDecoder(nn.Module):
    """The layers of a TAESD decoder; levels: (width, blocks) of each; enlarge: maker of an upsampling layer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        levels: list[tuple[int, int]],
        activation: type[nn.Module],
        enlarge: Any,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, levels[0][0], 3, padding=1), activation()]
        for i, (width, num_blocks) in enumerate(levels):
            is_last = i == len(levels) - 1
            layers.extend(TinyBlock(width, activation) for _ in range(num_blocks))
            layers.extend([] if is_last else [enlarge()])
            layers.append(nn.Conv2d(width, out_channels if is_last else width, 3, padding=1, bias=is_last))
        self.layers = nn.Sequential(*layers)


class TinyBlock(nn.Module):
    """Three convolutions around a skip connection."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        act = activation()
        first, second, third = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, act, second, act, third)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _one_head(norm_groups: int) -> Attend:
    return lambda channels: Attention(channels, heads=1, groups=norm_groups, eps=_EPS)
