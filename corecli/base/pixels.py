"""Pixels as networks see them: uint8 to [-1, 1] and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corecli.base.errors import DataError

if TYPE_CHECKING:
    import torch


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """[-1, 1] as uint8, rounded to the nearest, halves up: floor(127.5 x + 128) clipped to 0..255 (EDM).

    The inverse of `to_unit_range`. ADM truncates 127.5 (x + 1) instead, half a level darker; it moves an FID.
    Errors: DataError for values that are not finite.
    """
    if not x.isfinite().all():
        raise DataError("images that are not finite", hint="the network diverged, or needs another --precision")
    return (x.float() * 127.5 + 128).clamp(0, 255).byte()
