"""Conversion of pixels between uint8 and the range [-1, 1] of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corecli.base.errors import DataError

if TYPE_CHECKING:
    import torch


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """Return values in [-1, 1] as uint8: floor(127.5 x + 128), clipped to 0..255 (EDM).

    This is the inverse of `to_unit_range` and rounds to the nearest level. ADM truncates 127.5 (x + 1) instead, which
    is half a level darker and changes the FID. Errors: DataError for values that are not finite.
    """
    if not x.isfinite().all():
        raise DataError("images are not finite", hint="the network diverged or overflowed; try another --precision")
    return (x.float() * 127.5 + 128).clamp(0, 255).byte()
