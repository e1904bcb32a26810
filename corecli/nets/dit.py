"""DiT: a transformer over the patches of an image or of its latents (Peebles and Xie 2023).

diffusers' DiT differs: every block has its own time embedding, with other frequencies, and draws its own label dropout.
Parameters have the names of the official repository.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import UsageError, unknown_name
from corecli.nets.vit import check_divides, sincos_positions

NORM_EPS = 1e-6
TIME_FREQUENCIES = 256
MLP_RATIO = 4


class Size(NamedTuple):
    """Width, number of blocks and number of heads of a DiT."""

    width: int
    depth: int
    heads: int


SIZES = {  # DiT, Table 1
    "s": Size(384, 12, 6),
    "b": Size(768, 12, 12),
    "l": Size(1024, 24, 16),
    "xl": Size(1152, 28, 16),
    "tiny": Size(128, 4, 4),  # for small images
}


def size_of(name: str) -> Size:
    """Return the size with a name in `SIZES`. Errors: UsageError for another name."""
    if name not in SIZES:
        raise unknown_name("DiT size", name, SIZES)
    return SIZES[name]


class DiT(nn.Module):
    """(x [B, C, S, S], t [B], optional vector [B, width]) -> [B, out_channels, S, S].

    The vector is added to the time embedding, which shifts, scales and gates every block (adaLN-Zero). The output of a
    new network is zero. S is `image_size`, in pixels or latents.

    Errors: UsageError if the patches do not tile S.
    """

    positions: Tensor

    def __init__(self, *, image_size: int, in_channels: int, out_channels: int, patch: int, size: Size) -> None:
        super().__init__()
        check_divides(patch, image_size, image_size)
        _check(size)
        self.width, self.patch, self.out_channels = size.width, patch, out_channels
        self.x_embedder = PatchEmbedder(in_channels, size.width, patch)
        self.t_embedder = TimeEmbedder(size.width)
        self.blocks = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.depth)])
        self.final_layer = FinalLayer(size.width, patch**2 * out_channels)
        grid = image_size // patch
        self.register_buffer("positions", positions(grid, size.width), persistent=False)
        self._initialize()

    def forward(self, x: Tensor, t: Tensor, vector: Tensor | None = None) -> Tensor:
        """Return the output of the network; t may be fractional."""
        tokens = self.x_embedder(x) + self.positions
        c = self.t_embedder(t)
        c = c if vector is None else c + vector
        for block in self.blocks:
            tokens = block(tokens, c)
        return self._unpatched(self.final_layer(tokens, c))

    def _unpatched(self, patches: Tensor) -> Tensor:
        """Return patches [B, T, p p C] as images [B, C, S, S]."""
        grid = math.isqrt(patches.shape[1])
        x = patches.unflatten(2, (self.patch, self.patch, self.out_channels)).unflatten(1, (grid, grid))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _initialize(self) -> None:
        """Initialize linear layers Xavier-uniformly, the time embedding with std 0.02, and all gates with 0 (3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        net: Any = self
        nn.init.xavier_uniform_(net.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(net.x_embedder.proj.bias)
        for layer in (net.t_embedder.mlp[0], net.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        modulations = [part.adaLN_modulation[-1] for part in (*net.blocks, net.final_layer)]
        for layer in (*modulations, net.final_layer.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


class PatchEmbedder(nn.Module):
    """[B, C, S, S] -> [B, T, width]: one token per patch, row by row."""

    def __init__(self, in_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """t [B] -> [B, width]: cosines, then sines, at 128 frequencies from 1 to 1 / 10,000, followed by an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = TIME_FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angles = t.float()[:, None] * frequencies
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=1))


class Block(nn.Module):
    """A transformer block whose branches are shifted, scaled and gated by c (DiT, Figure 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attn(modulated(x, shift1, scale1))
        return x + gate2 * self.mlp(modulated(x, shift2, scale2))


class Attention(nn.Module):
    """Self-attention over tokens [B, T, width]; tokens where `seen` [B, T] is False are masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if seen is None else seen[:, None, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class FinalLayer(nn.Module):
    """[B, T, width] -> [B, T, dim]: the pixels of every patch."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=2)
        return self.linear(modulated(x, shift, scale))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply a LayerNorm without parameters, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def positions(grid: int, width: int) -> Tensor:
    """Return fixed position embeddings [grid^2, width]: sines and cosines of the column, then of the row."""
    return sincos_positions(grid, grid, width).roll(width // 2, dims=1)


def _check(size: Size) -> None:
    if size.width % size.heads or size.width % 4:
        raise UsageError(f"{size.heads} heads do not divide a width of {size.width}", hint="widths are multiples of 4")
