"""Read plain ViTs under the names of timm, DINO, DINOv2, iBOT, MAE, MoCo v3 and torchvision.

Width, depth, patch, image size, layer scale and registers follow from shapes and names; MoCo v3's ViTs are recognized
by their fixed positions. The number of heads is not in the file, so the usual one for the width is taken.
"""

from __future__ import annotations

import math
import re

import torch

from corecli.base.errors import DataError
from corecli.nets.vit import PREFIX, SIZES, sincos_positions
from corecli.nets.weights.encoders.names import Foreign, Tensors, under, without_heads

# Mask tokens and decoders of masked image modeling, which only its loss needs.
_NOT_EVALUATED = re.compile(r"mask_token$|masked_embed$|decoder[._]")
_PATCHES = {"patch_embed.proj.weight": "blocks.", "conv_proj.weight": "encoder.layers."}
_FROM_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)
_FROM_DINOV2 = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # training checkpoints keep the blocks in chunks, with one numbering
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_DINOV2_SIZES = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}
_HINT = "for another timm model write timm:NAME:FILE"


def prefixes(tensors: Tensors) -> set[str]:
    """Return the prefixes of all ViTs."""
    found = set()
    for name, tensor in tensors.items():
        for patches, blocks in _PATCHES.items():
            prefix = name.removesuffix(patches)
            is_whole_name = prefix != name and (not prefix or prefix.endswith("."))
            if is_whole_name and tensor.ndim == 4 and any(n.startswith(prefix + blocks) for n in tensors):
                found.add(prefix)
    return found


def read(tensors: Tensors, prefix: str, *, where: object) -> Foreign:
    """Return the ViT under a prefix, with timm's names. Errors: DataError for an unknown ViT."""
    weights = {n: t for n, t in without_heads(under(prefix, tensors)).items() if not _NOT_EVALUATED.match(n)}
    if "conv_proj.weight" in weights:
        weights = _renamed(weights, _FROM_TORCHVISION)
    weights = _with_registers(_renamed(weights, _FROM_DINOV2))
    for name in ("cls_token", "pos_embed"):
        if name not in weights:
            raise DataError(f"unknown ViT: it has no {name}", where=where, hint=_HINT)
    backbone, image_size = _name_and_size(weights, where)
    return Foreign(backbone=backbone, stem=None, image_size=image_size, tensors=weights)


def _renamed(weights: Tensors, patterns: tuple[tuple[str, str], ...]) -> Tensors:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _with_registers(weights: Tensors) -> Tensors:
    """Convert DINOv2's registers: the class token has a position there, while timm stores their sum."""
    if "register_tokens" not in weights:
        return weights
    weights = dict(weights)
    weights["reg_token"] = weights.pop("register_tokens")
    weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    return weights


def _name_and_size(weights: Tensors, where: object) -> tuple[str, int]:
    """Return (backbone, image size). Errors: DataError for an unknown ViT."""
    width, patch = weights["cls_token"].shape[-1], weights["patch_embed.proj.weight"].shape[-1]
    depth = len({n.split(".")[1] for n in weights if n.startswith("blocks.")})
    num_registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    num_patches = weights["pos_embed"].shape[1] - (0 if num_registers else 1)
    grid = math.isqrt(num_patches)
    if grid**2 != num_patches:
        raise DataError(f"{num_patches} position embeddings do not form a square grid", where=where)
    if "blocks.0.ls1.gamma" in weights:
        name = _DINOV2_SIZES.get((width, depth)) if patch == 14 and num_registers in (0, 4) else None
        backbone = name and f"timm:vit_{name}_patch14_{'reg4_' if num_registers else ''}dinov2"
    else:
        name = next((n for n, s in SIZES.items() if (s.width, s.depth) == (width, depth) and not num_registers), None)
        backbone = name and f"{PREFIX}{name}{'-moco' if _has_moco_positions(weights, grid) else ''}/{patch}"
    if backbone is None:
        facts = f"width {width}, depth {depth}, patch {patch}, {num_registers} registers"
        raise DataError(f"unknown ViT: {facts}", where=where, hint=_HINT)
    return backbone, grid * patch


def _has_moco_positions(weights: Tensors, grid: int) -> bool:
    positions = weights["pos_embed"][0, 1:].float()
    expected = sincos_positions(grid, grid, positions.shape[1])
    return positions.shape == expected.shape and torch.allclose(positions, expected, atol=1e-3)
