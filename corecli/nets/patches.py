"""Feature maps of an encoder's patches, and masks predicted from them by a linear layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets import vit
from corecli.nets.encoder import Encoder
from corecli.nets.initial import seeded

_HEAD_STD = 0.01  # DINOv2, as all heads of mmsegmentation


def patch_features(encoder: Encoder, x: Tensor) -> Tensor:
    """Return the last feature map: x, float [B, 3, H, W] in [0, 1] -> float [B, D, h, w].

    A vision transformer gives its patch tokens after the last norm, a ResNet the map before average pooling. Images
    whose size is no multiple of the patch are padded with the mean color, at the bottom and on the right. Positions of
    a transformer are interpolated to the grid. Errors: UsageError for other networks.
    """
    net: Any = encoder.backbone
    x = (x - encoder.mean) / encoder.std
    if vit.is_vit(net):
        height, width = _patch(net)
        x = F.pad(x, (0, -x.shape[-1] % width, 0, -x.shape[-2] % height))
        tokens = net.forward_features(x)[:, net.num_prefix_tokens :]
        return tokens.mT.unflatten(2, vit.grid_of(net, *x.shape[-2:]))
    maps = _last_stage(net, x) if hasattr(net, "layer4") else getattr(net, "forward_features", net)(x)
    if maps.ndim != 4 or maps.shape[1] != encoder.num_features:
        raise UsageError("this network has no patch features", hint="use a vision transformer or a ResNet")
    return maps


def enlarge(encoder: Encoder, maps: Tensor, size: tuple[int, int], *, mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Interpolate values of an encoder's patches, [B, C, h, w], to the pixels of images of `size` (H, W)."""
    whole, net = size, encoder.backbone
    if vit.is_vit(net):
        height, width = _patch(net)
        whole = (maps.shape[-2] * height, maps.shape[-1] * width)
    return F.interpolate(maps, whole, mode=mode)[..., : size[0], : size[1]]


class Segmenter(nn.Module):
    """DINOv2's linear segmentation: BatchNorm and a 1x1 convolution on the patch features of a frozen encoder."""

    def __init__(self, encoder: Encoder, num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        with seeded(seed, "segmenter"):
            convolution = nn.Conv2d(encoder.num_features, num_classes, 1)
            nn.init.normal_(convolution.weight, std=_HEAD_STD)
            nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
        self.head: nn.Module = nn.Sequential(nn.BatchNorm2d(encoder.num_features), convolution)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits float [B, C, H, W], bilinear between patches, for x, float [B, 3, H, W] in [0, 1]."""
        with torch.no_grad():
            maps = patch_features(self.encoder, x)
        return enlarge(self.encoder, self.head(maps.float()), (x.shape[-2], x.shape[-1]), mode="bilinear")

    def train(self, mode: bool = True) -> Segmenter:
        """Set the mode of the layer; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self


def slide(segmenter: nn.Module, image: Tensor, *, crop: int, stride: int, batch_size: int = 16) -> Tensor:
    """Return the mean logits of overlapping windows that cover an image of any size.

    image: float [3, H, W] in [0, 1] -> float [C, H, W]. Windows have `crop` px, or the image's side if that is shorter,
    and are `stride` px apart; the last window of a row or column ends at the border.
    """
    height, width = image.shape[-2:]
    tall, wide = min(crop, height), min(crop, width)
    corners = [(y, x) for y in _starts(height, tall, stride) for x in _starts(width, wide, stride)]
    total, times = torch.zeros(()), image.new_zeros(height, width)
    for first in range(0, len(corners), batch_size):
        part = corners[first : first + batch_size]
        logits = segmenter(torch.stack([image[:, y : y + tall, x : x + wide] for y, x in part])).float()
        total = total if total.ndim else image.new_zeros(logits.shape[1], height, width)
        for (y, x), window in zip(part, logits, strict=True):
            total[:, y : y + tall, x : x + wide] += window
            times[y : y + tall, x : x + wide] += 1
    return total / times


def _starts(length: int, window: int, stride: int) -> list[int]:
    return [min(start, length - window) for start in range(0, max(1, length - window + stride), stride)]


def _patch(net: Any) -> tuple[int, int]:
    return net.patch_embed.patch_size


def _last_stage(net: Any, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = net.layer4.register_forward_hook(lambda _, __, maps: seen.append(maps))
    try:
        net(x)
    finally:
        hook.remove()
    return seen[0]
