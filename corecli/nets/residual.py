"""Residual blocks, attention and changes of size: the parts of U-Nets and of autoencoders.

Modules have the parameter names of diffusers' classes, are initialized in the same order, and compute the same bits, so
that weights can be exchanged. Importing the package diffusers takes seconds; these take none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGE_BATCH = 64  # from which upsampling needs contiguous memory
Attend = Callable[[int], nn.Module]


class Residual(nn.Module):
    """(x [B, C_in, H, W], optional time embedding [B, time_dim]) -> [B, C_out, H, W].

    scale_shift: the time embedding scales and shifts the second norm; otherwise it is added before it.
    resize: "down" or "up" halves or doubles H and W inside the block (BigGAN).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        groups: int,
        eps: float,
        time_dim: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = False,
        resize: str | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        if time_dim:
            self.time_emb_proj = nn.Linear(time_dim, 2 * channels_out if scale_shift else channels_out)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.resize = {None: None, "down": nn.AvgPool2d(2, 2), "up": doubled}[resize]
        self.conv_shortcut = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = F.silu(self.norm1(x))
        if self.resize is not None:
            x, h = self.resize(x), self.resize(h)
        h = self.conv1(h)
        shift = None if embedding is None else self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        if shift is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift)
        h = self.conv2(self.dropout(F.silu(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return x + h


class Attention(nn.Module):
    """Attention of x to the tokens of `context`, or to x itself without one.

    With `groups`, x is a map [B, C, H, W], normalized first and added to the output; without, x is tokens [B, T, C].
    """

    def __init__(self, channels: int, *, heads: int, context_dim: int = 0, groups: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps) if groups else None
        bias = groups > 0
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(0.0)])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if self.group_norm is None:
            return self._attended(x, x if context is None else context)
        tokens = x.view(*x.shape[:2], -1).transpose(1, 2)
        tokens = self.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
        return self._attended(tokens, tokens).transpose(-1, -2).reshape(x.shape) + x

    def _attended(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            t.view(len(t), -1, self.heads, t.shape[2] // self.heads).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).to(q.dtype)
        for layer in self.to_out:
            h = layer(h)
        return h


class Downsample(nn.Module):
    """A convolution of stride 2. padding 0: only the right and bottom borders are padded, as in latent diffusion."""

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding != (0, 0) else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(doubled(x))


def doubled(x: Tensor) -> Tensor:
    """Return x [B, C, H, W] at twice its size, by nearest neighbors."""
    return F.interpolate(x.contiguous() if len(x) >= _LARGE_BATCH else x, scale_factor=2.0, mode="nearest")


class Level(nn.Module):
    """Residual blocks at one size, each followed by attention if `attend` is given, and a change of size at the end.

    channels: of each block, (in, out). resize: name and maker of the last layer, or None.
    """

    def __init__(
        self,
        channels: Sequence[tuple[int, int]],
        *,
        residual: Callable[[int, int], nn.Module],
        attend: Attend | None,
        resize: tuple[str, Callable[[], nn.Module]] | None,
    ) -> None:
        super().__init__()
        resnets, attentions = [], []
        for channels_in, channels_out in channels:
            resnets.append(residual(channels_in, channels_out))
            if attend is not None:
                attentions.append(attend(channels_out))
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        self._resize = resize and resize[0]
        if resize is not None:
            self.add_module(resize[0], nn.ModuleList([resize[1]()]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the level, without a time embedding."""
        return self.down(x)[-1]

    def down(self, x: Tensor, embedding: Tensor | None = None, context: Tensor | None = None) -> list[Tensor]:
        """Return the outputs of all blocks, and of the change of size."""
        outputs = []
        for i in range(len(self.resnets)):
            x = self._block(i, x, embedding, context)
            outputs.append(x)
        return [*outputs, self._resized(x, embedding)] if self._resize else outputs

    def up(self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor | None) -> Tensor:
        """Return the output of the level; each block takes the last of `skips` and removes it."""
        for i in range(len(self.resnets)):
            x = self._block(i, torch.cat([x, skips.pop()], dim=1), embedding, context)
        return self._resized(x, embedding) if self._resize else x

    def _block(self, i: int, x: Tensor, embedding: Tensor | None, context: Tensor | None) -> Tensor:
        x = self.resnets[i](x, embedding)
        return self.attentions[i](x, context) if len(self.attentions) else x

    def _resized(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        assert self._resize is not None
        (layer,) = self.get_submodule(self._resize).children()
        return layer(x, embedding) if isinstance(layer, Residual) else layer(x)


class Middle(nn.Module):
    """Two residual blocks with attention between them if `attend` is given."""

    def __init__(self, channels: int, *, residual: Callable[[int, int], nn.Module], attend: Attend | None) -> None:
        super().__init__()
        first = residual(channels, channels)
        self.attentions = nn.ModuleList([] if attend is None else [attend(channels)])
        self.resnets = nn.ModuleList([first, residual(channels, channels)])

    def forward(self, x: Tensor, embedding: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        x = self.resnets[0](x, embedding)
        for attention in self.attentions:
            x = attention(x, context)
        return self.resnets[1](x, embedding)
