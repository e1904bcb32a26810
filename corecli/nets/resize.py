"""Resize protocols of published tools, from images to the 299 pixels and the value range of Inception.

The same images under two protocols have a Frechet distance above 0, so each result names its protocol.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.base.errors import DataError, UsageError, unknown_name

SIZE_PX = 299
_MIN_PX = 75  # for fewer, the output of the last pooling is empty


def to_inception_input(images: Tensor, resize: str = "tf1") -> Tensor:
    """Resize images uint8 [B, 3, H, W] to float32 [B, 3, 299, 299] in about -1..1, with the protocol `resize`.

    tf1: bilinear with TensorFlow 1's corner alignment (original FID, ADM, EDM, torch-fidelity); torch: bilinear with
    half-pixel alignment and 2x - 1 (pytorch-fid); clean: antialiased bicubic (clean-fid); none: no resize.
    Errors: UsageError for an unknown protocol, or for `none` with images under 75 px; DataError unless uint8 RGB.
    """
    if resize not in RESIZES:
        raise unknown_name("resize", resize, RESIZES)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise DataError(f"expected uint8 images [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    return RESIZES[resize](images.float())


def _tf1(x: Tensor) -> Tensor:
    rows, columns = (_tf1_weights(size, x.device) for size in x.shape[-2:])
    x = _between(x[..., columns[0]], x[..., columns[1]], columns[2])
    return _center(_between(x[..., rows[0], :], x[..., rows[1], :], rows[2][:, None]))


def _between(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    return low + (high - low) * share  # torch.lerp would round differently from TensorFlow


def _tf1_weights(size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each output pixel j its two source pixels and the weight of the second, for source j * size / 299."""
    source = torch.arange(SIZE_PX, dtype=torch.float32, device=device) * torch.tensor(size / SIZE_PX)
    low = source.long()
    return low, (low + 1).clamp(max=size - 1), source - low


def _torch(x: Tensor) -> Tensor:
    return 2 * F.interpolate(x / 255, (SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False) - 1


def _clean(x: Tensor) -> Tensor:
    x = F.interpolate(x, (SIZE_PX, SIZE_PX), mode="bicubic", align_corners=False, antialias=True)  # as PIL on floats
    return _center(x.clamp(0, 255))


def _none(x: Tensor) -> Tensor:
    if min(x.shape[-2:]) < _MIN_PX:
        hint = f"use at least {_MIN_PX} px or another --resize"
        raise UsageError(f"images of {x.shape[-1]}x{x.shape[-2]} px are too small for --resize none", hint=hint)
    return _center(x)


def _center(x: Tensor) -> Tensor:
    return (x - 128) / 128


RESIZES: dict[str, Callable[[Tensor], Tensor]] = {"tf1": _tf1, "torch": _torch, "clean": _clean, "none": _none}
