"""A perceptual distance between images: between features of a frozen encoder at several depths."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder

_EPS = 1e-10
_MOST_DEPTHS = 4


class PerceptualDistance:
    """LPIPS without its learned weights (Zhang et al. 2018, Eq. 1), with a ResNet's stages or a ViT's blocks.

    This is not a module, so that the encoder is part of no state_dict.
    Errors: UsageError for a backbone that is neither a ResNet nor a ViT.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self._layers = _depths(encoder.backbone)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the squared difference of unit-length features, averaged over images, positions and depths.

        x, y: [B, 3, H, W] in [-1, 1]. The result is a float32 scalar with a gradient for x only.
        """
        with torch.no_grad():
            wanted = self._features(y)
        pairs = zip(self._features(x), wanted, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).mean()

    def _features(self, x: Tensor) -> list[Tensor]:
        """Return features [B, D, positions] at every depth, of unit length over D."""
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append(output)

        hooks = [layer.register_forward_hook(keep) for layer in self._layers]
        try:
            self.encoder.to(x.device)((x + 1) / 2)
        finally:
            for hook in hooks:
                hook.remove()
        flat = [h.flatten(2) if h.ndim == 4 else h.transpose(1, 2) for h in found]
        return [F.normalize(h.float(), dim=1, eps=_EPS) for h in flat]


def _depths(backbone: Any) -> list[nn.Module]:
    """Return the stages of a ResNet, or up to four evenly spaced blocks of a ViT that include the last."""
    stages = [getattr(backbone, f"layer{i}", None) for i in range(1, 5)]
    if all(isinstance(stage, nn.Module) for stage in stages):
        return [stage for stage in stages if stage is not None]
    blocks = list(getattr(backbone, "blocks", []))
    if not blocks:
        raise UsageError("the encoder has no stages to compare images in", hint="use a ResNet or a ViT")
    num = min(_MOST_DEPTHS, len(blocks))
    return [blocks[(i + 1) * len(blocks) // num - 1] for i in range(num)]
