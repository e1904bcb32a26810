"""Encoders of the bytes of captions, trained together with a generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corecli.nets.dit import NORM_EPS, Attention, Mlp

MAX_BYTES = 256  # default maximum length of a caption
WIDEST = 256
DEPTH = 3
GRAMS, NUM_VECTORS = (3, 5), 2**13
_HEAD_WIDTH = 32
_POSITION_STD, _BRANCH_STD = 0.3, 0.02
_PADDING = 0  # no caption has this byte


class ByteEncoder(nn.Module):
    """A small transformer: bytes uint8 [B, L], with L up to `length` -> tokens [B, 1 + L, width].

    The first token represents the whole caption: it is the mean over its bytes and a start token, so an empty caption
    works as well. Bytes of 0 after the end of a caption are padding. They have no effect, and their tokens repeat the
    first. The attribute `width` is the given width, rounded down to a multiple of the head width, from 32 to 256.
    """

    def __init__(self, *, width: int, length: int) -> None:
        super().__init__()
        heads = max(1, min(width, WIDEST) // _HEAD_WIDTH)
        self.width, self.length = heads * _HEAD_WIDTH, length
        self.embedding = nn.Embedding(256, self.width)
        self.positions = nn.Parameter(torch.empty(1 + length, self.width))
        self.blocks = nn.ModuleList([Block(self.width, heads) for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(self.width, eps=NORM_EPS)
        nn.init.normal_(self.positions, std=_POSITION_STD)

    def forward(self, captions: Tensor) -> Tensor:
        """Map captions as `to_bytes` returns them to tokens."""
        captions = nn.functional.pad(captions, (1, 0))  # the start token is known by its position
        seen = captions != _PADDING
        seen[:, 0] = True
        x = self.embedding(captions.long()) + self.positions[: captions.shape[1]]
        for block in self.blocks:
            x = block(x, seen)
        weight = seen[:, :, None].float()
        whole = self.norm((x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True))
        return torch.cat([whole, torch.where(seen[:, 1:, None], self.norm(x)[:, 1:], whole)], dim=1)


class NgramBag(nn.Module):
    """A sum of n-gram vectors, as in fastText: bytes uint8 [B, L] -> float32 [B, width].

    N-grams have `GRAMS` bytes, and a hash selects their vectors. The vectors start at zero. Optimizers that scale by
    the gradient move the few vectors of a caption as fast as the embedding of a class label. So words affect a
    generator from its first steps, long before the transformer is trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(NUM_VECTORS, width))

    def forward(self, captions: Tensor) -> Tensor:
        """Map captions as `to_bytes` returns them to vectors; bytes of 0 add nothing."""
        captions = nn.functional.pad(captions, (1, 0))  # the empty caption has no bytes
        places = torch.cat([_hashed(captions, size) for size in GRAMS], dim=1)
        return nn.functional.embedding_bag(places, self.vectors, mode="sum", padding_idx=0)


def _hashed(captions: Tensor, size: int) -> Tensor:
    """Return the vector index of the n-gram that ends at each byte, int64 [B, L]; 0 after the end of a caption."""
    padded = nn.functional.pad(captions.long(), (size - 1, 0))
    number = torch.full_like(captions, size, dtype=torch.int64)
    for k in range(size):
        number = (number * 1_000_003 + padded[:, k : k + captions.shape[1]]) % (2**31 - 1)
    return torch.where(captions != _PADDING, 1 + number % (NUM_VECTORS - 1), 0)


class Block(nn.Module):
    """A transformer block with masked attention.

    Its branches start small, so that a new encoder keeps different bytes, and therefore captions, apart. Otherwise a
    generator needs several times as many steps until captions affect it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=NORM_EPS), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=NORM_EPS), Mlp(width)
        for last in (self.attn.proj, self.mlp.fc2):
            nn.init.normal_(last.weight, std=_BRANCH_STD)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), seen)
        return x + self.mlp(self.norm2(x))


def to_bytes(captions: Sequence[str], length: int) -> Tensor:
    """Return captions in UTF-8, cut to `length` bytes and padded with 0 to the longest: uint8 [B, L]."""
    encoded = [caption.encode(errors="replace")[:length] for caption in captions]
    longest = max(map(len, encoded))
    rows = b"".join(caption.ljust(longest, b"\0") for caption in encoded)
    return torch.frombuffer(bytearray(rows), dtype=torch.uint8).reshape(len(encoded), longest)


def num_cut(captions: Sequence[str], length: int) -> int:
    """Return how many captions have more than `length` bytes."""
    return sum(len(caption.encode(errors="replace")) > length for caption in captions)
