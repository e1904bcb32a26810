"""Depths of the weights of a backbone, for learning rates that fall toward the input (layer-wise decay, BEiT)."""

from __future__ import annotations

import re

from torch import nn

_BEFORE_BLOCKS = ("conv1", "bn1", "stem", "patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
_BLOCK = re.compile(r"(?:blocks|stages|layers)\.(\d+)\.")
_STAGE = re.compile(r"layer(\d+)\.")


def rate_scales(backbone: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Return the factor of each weight's learning rate: decay^(depth of the head - depth), which is 1 for the head."""
    weights = dict(backbone.named_parameters())
    depth_of, top = depths(list(weights))
    return {weight: decay ** (top - depth_of[name]) for name, weight in weights.items()}


def depths(names: list[str]) -> tuple[dict[str, int], int]:
    """Return the depth of each weight, 0 before the first block or stage, and the depth of the head.

    The depth counts stages of a ResNet and blocks of a vision transformer. Weights after the last one have the depth of
    the head (BEiT, MAE).
    """
    found: dict[str, int] = {}
    for name in names:
        if block := _BLOCK.match(name):
            found[name] = int(block[1]) + 1
        elif stage := _STAGE.match(name):
            found[name] = int(stage[1])
        elif name.startswith(_BEFORE_BLOCKS):
            found[name] = 0
    top = max(found.values(), default=0) + 1
    return {name: found.get(name, top) for name in names}, top
