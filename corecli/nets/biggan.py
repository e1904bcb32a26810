"""The generator and the discriminator of BigGAN (Brock et al. 2019) as IC-GAN conditions them on features of an image.

Both follow the released code of IC-GAN (Casanova et al. 2021) and have its numbers of parameters, except for a table of
1000 classes (128,000 parameters) that its generator never uses. With labels instead of features, this is BigGAN itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear

FIRST_PX = 4
_PUBLISHED = {  # widths by image size, in units of `channels`
    32: ((4, 4, 4, 4), (4, 4, 4, 4)),
    64: ((16, 16, 8, 4, 2), (1, 2, 4, 8, 16)),
    128: ((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16)),
    256: ((16, 16, 8, 8, 4, 2, 1), (1, 2, 4, 8, 8, 16, 16)),
}


class BigGanGenerator(nn.Module):
    """(z [B, z_dim], condition) -> images [B, 3, S, S] in [-1, 1].

    mult: widths at 4, 8, .. S px, in units of `channels`. z is split into equal chunks: the first makes the map of
    4 px, and every block gets one more. In a block, the chunk and an embedding of the condition shift and scale the
    BatchNorms. The condition is features [B, condition_dim], or labels [B] of `num_classes` classes if `condition_dim`
    is 0. `z_dim` is rounded down to a multiple of the number of chunks. attention_px: sizes below S whose block is
    followed by attention.

    Errors: UsageError if the widths do not lead to the image size, or z is too short.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        mult: tuple[int, ...],
        attention_px: tuple[int, ...],
        z_dim: int,
        condition_dim: int,
        num_classes: int,
        condition_width: int,
    ) -> None:
        super().__init__()
        widths = [channels * m for m in mult]
        sizes = [FIRST_PX << level for level in range(1, len(widths))]
        if not sizes or sizes[-1] != image_size:
            hint = "channel_mult has one width for 4 px and one for each doubling"
            raise UsageError(f"{len(mult)} widths do not lead from {FIRST_PX} to {image_size} px", hint=hint)
        self._chunk = z_dim // len(widths)
        if self._chunk < 1:
            raise UsageError(f"z of {z_dim} dimensions cannot be cut into {len(widths)} chunks")
        self.z_dim = self._chunk * len(widths)
        self.embed = (
            SpectralLinear(condition_dim, condition_width) if condition_dim else _table(num_classes, condition_width)
        )
        self.first = SpectralLinear(self._chunk, widths[0] * FIRST_PX**2)
        width = condition_width + self._chunk
        pairs = zip(widths, widths[1:], strict=False)
        self.blocks = nn.ModuleList(UpBlock(a, b, width=width) for a, b in pairs)
        self.attention = nn.ModuleList(
            _attention(width, here=px in attention_px and px < image_size)
            for width, px in zip(widths[1:], sizes, strict=True)
        )
        self.last_norm = nn.BatchNorm2d(widths[-1])
        self.last = SpectralConv2d(widths[-1], 3, 3)

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        """Return images, float32 [B, 3, S, S] in [-1, 1]."""
        start, *chunks = z.split(self._chunk, dim=1)
        embedded = self.embed(condition)
        h = self.first(start).unflatten(1, (-1, FIRST_PX, FIRST_PX))
        for block, attention, chunk in zip(self.blocks, self.attention, chunks, strict=True):
            h = attention(block(h, torch.cat([embedded, chunk.to(embedded.dtype)], dim=1)))
        return torch.tanh(self.last(F.relu(self.last_norm(h))).to(z.dtype))


class BigGanDiscriminator(nn.Module):
    """(images [B, 3, S, S] in [-1, 1], condition) -> scores [B], by projection (Miyato and Koyama 2018).

    mult: width of every block, in units of `channels`. Blocks halve the size down to 4 px, or to 8 px for images of at
    most 32 px; any further blocks keep it. The condition is the generator's. attention_px: sizes below S.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        mult: tuple[int, ...],
        attention_px: tuple[int, ...],
        condition_dim: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        widths = [3, *(channels * m for m in mult)]
        halvings = int(math.log2(image_size // (4 if image_size > 32 else 8)))
        blocks, attentions, px = [], [], image_size
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks.append(DownBlock(a, b, first=i == 0, halves=i < halvings))
            px = px // 2 if i < halvings else px
            attentions.append(_attention(b, here=px in attention_px and px < image_size))
        self.blocks, self.attention = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.score = SpectralLinear(widths[-1], 1)
        self.embed = (
            SpectralLinear(condition_dim, widths[-1]) if condition_dim else SpectralEmbedding(num_classes, widths[-1])
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return scores, float32 [B]; high means real."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            x = attention(block(x))
        with torch.autocast(x.device.type, enabled=False):
            h = F.relu(x.to(self.score.weight.dtype)).sum(dim=(2, 3))
            return self.score(h)[:, 0] + (self.embed(condition) * h).sum(dim=1)


class ConditionalNorm(nn.Module):
    """BatchNorm whose scale and shift are linear maps of a vector: (x [B, C, H, W], vector [B, width])."""

    def __init__(self, channels: int, *, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = SpectralLinear(width, channels, bias=False)
        self.bias = SpectralLinear(width, channels, bias=False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        gain, bias = (layer(vector)[:, :, None, None] for layer in (self.gain, self.bias))
        return self.norm(x) * (1 + gain) + bias


class UpBlock(nn.Module):
    """A residual block that doubles the size."""

    def __init__(self, channels_in: int, channels_out: int, *, width: int) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(channels_in, width=width)
        self.conv1 = SpectralConv2d(channels_in, channels_out, 3)
        self.norm2 = ConditionalNorm(channels_out, width=width)
        self.conv2 = SpectralConv2d(channels_out, channels_out, 3)
        self.skip = SpectralConv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        h = self.conv1(_doubled(F.relu(self.norm1(x, vector))))
        h = self.conv2(F.relu(self.norm2(h, vector)))
        return h + _doubled(self.skip(x))  # equal to mapping the doubled pixels, at a quarter of the cost


class DownBlock(nn.Module):
    """A residual block that halves the size or keeps it; the first block of a network does not activate its input."""

    def __init__(self, channels_in: int, channels_out: int, *, first: bool, halves: bool) -> None:
        super().__init__()
        self.first, self.halves = first, halves
        self.conv1 = SpectralConv2d(channels_in, channels_out, 3)
        self.conv2 = SpectralConv2d(channels_out, channels_out, 3)
        is_changed = halves or channels_in != channels_out
        self.skip = SpectralConv2d(channels_in, channels_out, 1) if is_changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halves:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.skip(x)  # averaging before a 1 x 1 convolution equals averaging after it


class Attention(nn.Module):
    """Self-attention over pixels, with keys and values at half the size; its initial gain is 0 (SAGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise UsageError(f"attention over {channels} channels needs a multiple of 8")
        self.query = SpectralConv2d(channels, channels // 8, 1, bias=False)
        self.key = SpectralConv2d(channels, channels // 8, 1, bias=False)
        self.value = SpectralConv2d(channels, channels // 2, 1, bias=False)
        self.out = SpectralConv2d(channels // 2, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.query(x), F.max_pool2d(self.key(x), 2), F.max_pool2d(self.value(x), 2)
        q, k, v = (m.flatten(2).transpose(1, 2) for m in maps)  # [B, pixels, channels]
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return x + self.gain * self.out(attended.transpose(1, 2).unflatten(2, x.shape[2:]))


def default_mult(image_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the published widths of generator and discriminator; below 32 px, those of 32 px with fewer blocks.

    Errors: UsageError for sizes that are not 4 px times a power of 2, and for sizes above 256 px.
    """
    doublings = (image_size // FIRST_PX).bit_length() - 1
    if doublings < 1 or image_size != FIRST_PX << doublings:
        raise UsageError(f"images of {image_size} px are not {FIRST_PX} px doubled", hint="use 8, 16, 32, 64, ..")
    if image_size > max(_PUBLISHED):
        hint = "give channel_mult and discriminator_mult"
        raise UsageError(f"no widths are known for {image_size} px", hint=hint)
    generator, discriminator = _PUBLISHED[max(image_size, min(_PUBLISHED))]
    return generator[: doublings + 1], discriminator


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)


def _attention(channels: int, *, here: bool) -> nn.Module:
    return Attention(channels) if here else nn.Identity()


def _table(num_classes: int, width: int) -> nn.Embedding:
    """Return a table of class embeddings, initially orthogonal; BigGAN found that spectral normalization hurts it."""
    table = nn.Embedding(num_classes, width)
    nn.init.orthogonal_(table.weight)
    return table
