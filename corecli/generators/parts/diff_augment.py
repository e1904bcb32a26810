"""Differentiable augmentation of the input of a discriminator, real and generated (DiffAugment, Zhao et al. 2020).

It keeps the discriminator from memorizing a small set. Because gradients pass through it, the generator does not learn
to make augmented images.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("color", "translation", "cutout")
NUM_DRAWS = 7
_MOST_SHIFT, _CUT = 1 / 8, 1 / 2  # of the image's size


def diff_augment(x: Tensor, draws: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """Augment images [B, 3, S, S] in [-1, 1] by some of `KINDS`, in that order; outside of images is 0 (gray).

    draws: [B, NUM_DRAWS] uniform in [0, 1).
    """
    if "color" in kinds:
        x = _recolored(x, draws[:, 0:3])
    if "translation" in kinds:
        x = _moved(x, draws[:, 3:5])
    if "cutout" in kinds:
        x = _cut(x, draws[:, 5:7])
    return x


def _recolored(x: Tensor, draws: Tensor) -> Tensor:
    """Add up to 0.5 to brightness either way, multiply saturation by 0 to 2 and contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = draws[:, :, None, None, None].unbind(1)
    x = x + (brightness - 0.5)
    gray = x.mean(dim=1, keepdim=True)
    x = (x - gray) * (2 * saturation) + gray
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _moved(x: Tensor, draws: Tensor) -> Tensor:
    """Shift images by whole pixels, up to an eighth of the size, as products with shifted identity matrices.

    Unlike indexing, their gradient is deterministic on CUDA.
    """
    most = int(x.shape[-1] * _MOST_SHIFT + 0.5)
    offsets = (draws * (2 * most + 1)).floor() - most  # [B, 2]
    places = torch.arange(x.shape[-1], device=x.device)
    from_ = places[:, None] + offsets[:, :, None, None]  # [B, 2, S, 1]
    rows, columns = (from_ == places).to(x.dtype)[:, :, None].unbind(1)  # [B, 1, S, S]
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x @ columns.mT


def _cut(x: Tensor, draws: Tensor) -> Tensor:
    """Draw a gray square of half the size around a random pixel; part of it may be outside of the image."""
    size = x.shape[-1]
    cut = int(size * _CUT + 0.5)
    first = (draws * (size + 1 - cut % 2)).floor() - cut // 2  # [B, 2]
    offsets = torch.arange(size, device=x.device) - first[:, :, None]  # [B, 2, S]
    rows, columns = ((offsets >= 0) & (offsets < cut)).unbind(1)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
