"""Attention of the class token of a vision transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from corecli.base.errors import UsageError
from corecli.nets.encoder import Encoder


def class_attention(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last block's attention of the class token to the patches, and the images as the network saw them.

    images: uint8 [B, 3, H, W]. The attention is float32 [B, heads, h, w]; a head's values sum to at most 1, because
    the class token and registers get the rest. It is computed here, because the network's fused attention does not
    return it. The returned images are uint8 [B, 3, S, S], resized and cropped by the encoder.
    Errors: UsageError if the network is no plain vision transformer with a class token.
    """
    backbone: Any = encoder.backbone
    layer = _last_attention(backbone)
    seen: dict[str, Tensor] = {}
    hooks = [
        backbone.register_forward_pre_hook(lambda _, inputs: seen.update(images=inputs[0])),
        layer.register_forward_pre_hook(lambda _, inputs: seen.update(tokens=inputs[0])),
    ]
    try:
        encoder.encode(images)
        with torch.no_grad():
            attention = _attention(layer, seen["tokens"])
    finally:
        for hook in hooks:
            hook.remove()
    pixels = ((seen["images"] * encoder.std + encoder.mean) * 255).round().clamp(0, 255).byte()
    patch = backbone.patch_embed.patch_size
    grid = [side // px for side, px in zip(pixels.shape[-2:], patch, strict=True)]
    return attention[:, :, 0, backbone.num_prefix_tokens :].unflatten(2, grid), pixels


def _attention(layer: Any, tokens: Tensor) -> Tensor:
    """Return the softmax of an attention layer of timm: tokens [B, T, D] -> float32 [B, heads, T, T]."""
    batch, num, _ = tokens.shape
    q, k, _ = layer.qkv(tokens).reshape(batch, num, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = layer.q_norm(q), layer.k_norm(k)
    return (q @ k.transpose(-2, -1) * layer.scale).float().softmax(dim=-1)


def _last_attention(backbone: Any) -> Any:
    layer = getattr(getattr(backbone, "blocks", [None])[-1], "attn", None)
    rotates = (
        getattr(backbone, "rope", None) is not None
    )  # rotates queries and keys by position, which is not visible here
    if not hasattr(layer, "qkv") or not hasattr(backbone, "patch_embed") or rotates:
        raise UsageError("this network has no attention to show", hint="use a plain vision transformer")
    if getattr(backbone, "cls_token", None) is None:
        raise UsageError("this transformer has no class token to show the attention of")
    return layer
