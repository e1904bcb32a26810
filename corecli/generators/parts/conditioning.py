"""Conditions of a diffusion network: features, class labels or captions.

They become a vector that is added to the time embedding, or tokens to which the network attends.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from corecli.base.errors import DataError, UsageError, unknown_name
from corecli.nets.text import ByteEncoder, NgramBag

NULL_STD = 0.02
_LEAST_STD = 1e-4


class Conditioning(Protocol):
    """A module that maps conditions to vectors [B, width], initially zero, so that a new model ignores its condition.

    If the network attends to captions, the result is tokens [B, T, width] with a fixed T instead of vectors.
    """

    def check(self, condition: torch.Tensor) -> None:
        """Raise DataError for conditions of the wrong kind, shape or range."""
        ...

    def __call__(
        self, condition: torch.Tensor, *, drop: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the vectors of conditions; rows where `drop` [B] is True get that of the null condition."""
        ...

    def null(self, batch: int) -> torch.Tensor:
        """Return the vector of the null condition, [batch, width]; needs condition dropout in training."""
        ...


class FeatureConditioning(nn.Module):
    """Features z [B, D] -> a zero-initialized linear map of normalized z (RCG on ADM).

    The null condition is a learned vector that replaces normalized z (RCG on DiT). It exists only if the model is
    trained with condition dropout.
    """

    def __init__(self, *, dim: int, width: int, normalize: str, droppable: bool) -> None:
        super().__init__()
        if normalize not in NORMALIZATIONS:
            raise unknown_name("feature normalization", normalize, NORMALIZATIONS)
        if dim < 2:
            raise UsageError("a feature-conditioned generator needs features of 2 or more dimensions")
        self.dim, self.normalize = dim, normalize
        self.linear = zero_linear(dim, width)
        self.null_feature = nn.Parameter(torch.randn(dim) * NULL_STD) if droppable else None

    def check(self, condition: torch.Tensor) -> None:
        """Raise DataError unless given finite floats [B, D]."""
        check_features(condition, self.dim)

    def forward(
        self, condition: torch.Tensor, *, drop: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return vectors [B, width]; `noise` [B, D] is added to the normalized features."""
        z = NORMALIZATIONS[self.normalize](condition.float())
        if noise is not None:
            z = z + noise
        if drop is not None and self.null_feature is not None:
            z = torch.where(drop[:, None], self.null_feature, z)
        return self.linear(z)

    def null(self, batch: int) -> torch.Tensor:
        """Return the vector of the learned null feature, [batch, width]."""
        assert self.null_feature is not None, "trained without condition dropout"
        return self.linear(self.null_feature.expand(batch, -1))


class LabelConditioning(nn.Module):
    """Class labels int64 [B] -> a zero-initialized linear map of embeddings; an extra last class is the null condition.

    Zero-initialized embeddings alone would change only by the learning rate per step; with the map, they learn as fast
    as features.
    """

    def __init__(self, *, num_classes: int, width: int, droppable: bool) -> None:
        super().__init__()
        if num_classes < 1:
            raise UsageError("a label-conditioned generator needs the number of classes")
        self.num_classes, self.droppable = num_classes, droppable
        self.embedding = nn.Embedding(num_classes + droppable, width)
        self.linear = zero_linear(width, width)

    def check(self, condition: torch.Tensor) -> None:
        """Raise DataError unless given integers [B] in [0, num_classes)."""
        check_labels(condition, self.num_classes)

    def forward(
        self, condition: torch.Tensor, *, drop: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return vectors [B, width]; labels take no noise."""
        assert noise is None, "labels take no noise"
        if drop is not None and self.droppable:
            condition = torch.where(drop, self.num_classes, condition)
        return self.linear(self.embedding(condition))

    def null(self, batch: int) -> torch.Tensor:
        """Return the vector of the null class, [batch, width]."""
        assert self.droppable, "trained without condition dropout"
        return self.linear(self.embedding.weight[-1].expand(batch, -1))


class CaptionConditioning(nn.Module):
    """Captions as uint8 bytes [B, L], padded with 0 -> a zero-initialized linear map of a `ByteEncoder`'s output, plus
    a `NgramBag`. Both are trained with the generator. The null condition is the empty caption.

    attends: whether the result is 1 + `length` tokens per caption instead of one vector; the bag is added to each.
    """

    def __init__(self, *, length: int, width: int, attends: bool, droppable: bool) -> None:
        super().__init__()
        if length < 1:
            raise UsageError(f"the caption length is {length} bytes", hint="use 1 or more")
        self.length, self.attends, self.droppable = length, attends, droppable
        self.encoder = ByteEncoder(width=width // 2, length=length)
        self.linear = zero_linear(self.encoder.width, width)
        self.words = NgramBag(width)

    def check(self, condition: torch.Tensor) -> None:
        """Raise DataError unless given bytes [B, L], L up to `length`."""
        if condition.dtype != torch.uint8 or condition.ndim != 2 or condition.shape[1] > self.length:
            found = f"{condition.dtype} of {tuple(condition.shape[1:])}"
            raise DataError(f"the generator takes captions of up to {self.length} bytes, not {found}")

    def forward(
        self, condition: torch.Tensor, *, drop: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return vectors [B, width] or tokens [B, 1 + length, width]; captions take no noise."""
        assert noise is None, "captions take no noise"
        if drop is not None and self.droppable:
            condition = condition.masked_fill(drop[:, None], 0)
        tokens = self.linear(_read(self.encoder(condition), self.length, attends=self.attends))
        words = self.words(condition)
        return tokens + (words[:, None] if self.attends else words)

    def null(self, batch: int) -> torch.Tensor:
        """Return the vector or tokens of the empty caption, [batch, ...]."""
        assert self.droppable, "trained without condition dropout"
        empty = torch.zeros(1, 0, dtype=torch.uint8, device=self.linear.weight.device)
        vector = self(empty)
        return vector.expand(batch, *vector.shape[1:])


class EmbeddingConditioning(nn.Module):
    """Embeddings [B, T, D] of captions by a frozen text encoder -> a zero-initialized linear map of them.

    The first embedding is that of the whole caption. The null condition is a learned vector that replaces embeddings.
    attends: whether the result is 1 + `length` tokens, padded with copies of the first, instead of one vector.
    """

    def __init__(self, *, dim: int, length: int, width: int, attends: bool, droppable: bool) -> None:
        super().__init__()
        self.dim, self.length, self.attends = dim, length, attends
        self.standard = Standardization(dim)
        self.linear = zero_linear(dim, width)
        self.null_caption = nn.Parameter(torch.randn(dim) * NULL_STD) if droppable else None

    def check(self, condition: torch.Tensor) -> None:
        """Raise DataError unless given finite floats [B, T, D], T up to 1 + `length`."""
        if condition.ndim != 3 or condition.shape[2] != self.dim or not 0 < condition.shape[1] <= 1 + self.length:
            expected = f"up to {1 + self.length} embeddings of {self.dim} dimensions a caption"
            raise DataError(f"the generator takes {expected}, not {tuple(condition.shape[1:])}")
        if not condition.isfinite().all():
            raise DataError("embeddings of captions contain NaN or infinity")

    def forward(
        self, condition: torch.Tensor, *, drop: torch.Tensor | None = None, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return vectors [B, width] or tokens [B, 1 + length, width]; captions take no noise."""
        assert noise is None, "captions take no noise"
        z = self.standard(_read(condition.float(), self.length, attends=self.attends))
        if drop is not None and self.null_caption is not None:
            z = torch.where(drop.view(-1, *[1] * (z.ndim - 1)), self.null_caption, z)
        return self.linear(z)

    def null(self, batch: int) -> torch.Tensor:
        """Return the vector or tokens of the learned null embedding, [batch, ...]."""
        assert self.null_caption is not None, "trained without condition dropout"
        shape = (batch, 1 + self.length, -1) if self.attends else (batch, -1)
        return self.linear(self.null_caption.expand(*shape))

    def measure(self, condition: torch.Tensor) -> None:
        """Set mean and standard deviation from these captions."""
        self.standard.measure(_read(condition.float(), 0, attends=self.attends))


class Standardization(nn.Module):
    """(z - mean) / std per dimension, with the statistics of the captions given to `measure`; z itself before that.

    Embeddings of captions differ little from their mean. Without standardization, a linear map learns the mean first,
    and the differences an order of magnitude later.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z - self.mean) / self.std

    def measure(self, z: torch.Tensor) -> None:
        """z: [..., dim]."""
        z = z.flatten(0, -2)
        std = z.std(dim=0, correction=0)
        self.mean.copy_(z.mean(dim=0))
        self.std.copy_(torch.where(std > _LEAST_STD, std, 1.0))


def _read(tokens: torch.Tensor, length: int, *, attends: bool) -> torch.Tensor:
    """Return the first token [B, D] of [B, T, D]; if `attends`, at least 1 + `length` tokens, padded with copies of it.

    With copies no mask is needed: attention to them is attention to the whole caption.
    """
    whole = tokens[:, :1]
    missing = max(0, 1 + length - tokens.shape[1])
    return torch.cat([tokens, whole.expand(-1, missing, -1)], dim=1) if attends else whole[:, 0]


def check_features(features: torch.Tensor, dim: int) -> None:
    """Raise DataError unless given finite floats [B, dim]."""
    if features.ndim != 2 or features.shape[1] != dim:
        shape = " x ".join(map(str, features.shape[1:])) or "no"
        raise DataError(
            f"features have {shape} dimensions, but the generator takes {dim}",
            hint="extract them with the encoder and layer it was trained on",
        )
    if not features.isfinite().all():
        raise DataError("features contain NaN or infinity", hint="extract them again")


def check_labels(labels: torch.Tensor, num_classes: int) -> None:
    """Raise DataError unless given integers [B] in [0, num_classes)."""
    if labels.ndim != 1 or labels.is_floating_point():
        raise DataError("the generator takes one class label per image", hint="give labels, not features")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(
            f"labels are {int(labels.min())} to {int(labels.max())}, but the generator takes 0 to {num_classes - 1}"
        )


def zero_linear(dim: int, width: int) -> nn.Linear:
    """Return a linear layer whose parameters are zero."""
    linear = nn.Linear(dim, width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def standardize(z: torch.Tensor) -> torch.Tensor:
    """Return (z - mean) / std of each row, with the unbiased std (RCG)."""
    return (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, keepdim=True).clamp(min=1e-6)


def unit_length(z: torch.Tensor) -> torch.Tensor:
    """Return rows scaled to length 1 (IC-GAN)."""
    return F.normalize(z, dim=1)


def unchanged(z: torch.Tensor) -> torch.Tensor:
    """Return the rows unchanged."""
    return z


NORMALIZATIONS = {"none": unchanged, "per-sample": standardize, "l2": unit_length}
