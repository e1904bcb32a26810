"""The fifteen common corruptions of ImageNet-C and CIFAR-C, computed when images are read.

A corrupted image is a function of its pixels and its seed only. The severities of an image share their random draws, so
only the strength grows from 1 to 5.

Source: Hendrycks & Dietterich 2019, section 4.1, with the constants of the authors' code: those of CIFAR-C for images
whose shorter side is at most 64 px, else those of ImageNet-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from corecli.base.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Tensor, name: str, severity: int, *, seeds: list[int]) -> Tensor:
    """Return corrupted uint8 images [B, 3, H, W], computed on the CPU, on the same device; one seed for each image.

    Errors: UsageError for an unknown name or severity.
    """
    check_corruption(name, severity)
    import torch

    from corecli.views import corruptions

    assert images.dtype == torch.uint8
    assert len(images) == len(seeds)
    changed = images.cpu().clone()
    for row, seed in enumerate(seeds):
        changed[row] = corruptions.apply(changed[row], name, severity, seed)
    return changed.to(images.device)


def check_corruption(name: str, severity: int) -> None:
    """Raise UsageError for an unknown name or severity. Does not import torch."""
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} of {name} is not one of 1 to 5")
