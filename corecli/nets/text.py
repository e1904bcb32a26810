"""A small transformer over the bytes of captions, for a generator that learns to read together with its images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corecli.nets.dit import NORM_EPS, Attention, Mlp

MAX_BYTES = 256  # of a caption, unless told
WIDEST = 256
DEPTH = 3
GRAMS, NUM_VECTORS = (3, 5), 2**13
_HEAD_WIDTH = 32
_POSITION_STD, _BRANCH_STD = 0.3, 0.02
_PADDING = 0  # the byte that no caption has


class ByteEncoder(nn.Module):
    """Captions as bytes, uint8 [B, L], L up to `length` -> tokens [B, 1 + L, width], the first of the whole caption.

    Bytes of 0 after a caption's end are padding: they change nothing, and their tokens repeat the first, which is the
    mean of the others and of one that stands before every caption. So a caption of no bytes is one as well.
    `width` is what was asked for, rounded down to whole heads, from 32 to 256.
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
        """Captions as `to_bytes` gives them -> tokens."""
        captions = nn.functional.pad(captions, (1, 0))  # the start is told by its position
        seen = captions != _PADDING
        seen[:, 0] = True
        x = self.embedding(captions.long()) + self.positions[: captions.shape[1]]
        for block in self.blocks:
            x = block(x, seen)
        weight = seen[:, :, None].float()
        whole = self.norm((x * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True))
        return torch.cat([whole, torch.where(seen[:, 1:, None], self.norm(x)[:, 1:], whole)], dim=1)


class NgramBag(nn.Module):
    """Captions as bytes, uint8 [B, L] -> float32 [B, width]: the sum of a vector of each of their n-grams (fastText).

    N-grams are of `GRAMS` bytes and find their vectors by a hash. They are zeros at first, and optimizers that scale
    by gradient move the few of a caption as fast as the one of a class label: so a generator hears of words from its
    first steps, long before a transformer has learned to read.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(NUM_VECTORS, width))

    def forward(self, captions: Tensor) -> Tensor:
        """Captions as `to_bytes` gives them -> vectors; bytes of 0 add nothing."""
        captions = nn.functional.pad(captions, (1, 0))  # the empty caption has no bytes
        places = torch.cat([_hashed(captions, size) for size in GRAMS], dim=1)
        return nn.functional.embedding_bag(places, self.vectors, mode="sum", padding_idx=0)


def _hashed(captions: Tensor, size: int) -> Tensor:
    """The number of the vector of the n-gram that ends at each byte, int64 [B, L], 0 after a caption's end."""
    padded = nn.functional.pad(captions.long(), (size - 1, 0))
    number = torch.full_like(captions, size, dtype=torch.int64)
    for k in range(size):
        number = (number * 1_000_003 + padded[:, k : k + captions.shape[1]]) % (2**31 - 1)
    return torch.where(captions != _PADDING, 1 + number % (NUM_VECTORS - 1), 0)


class Block(nn.Module):
    """A transformer block whose tokens see some of the others alone.

    Its branches begin small, so that a new encoder tells its bytes, and with them captions, apart: otherwise a
    generator takes several times the steps to hear of them.
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
    """Captions in utf-8, cut to `length` bytes: uint8 [B, L], padded with 0 to the longest."""
    told = [caption.encode(errors="replace")[:length] for caption in captions]
    longest = max(map(len, told))
    rows = b"".join(caption.ljust(longest, b"\0") for caption in told)
    return torch.frombuffer(bytearray(rows), dtype=torch.uint8).reshape(len(told), longest)


def num_cut(captions: Sequence[str], length: int) -> int:
    """How many captions have more than `length` bytes."""
    return sum(len(caption.encode(errors="replace")) > length for caption in captions)
