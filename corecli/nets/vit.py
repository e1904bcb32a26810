"""Vision transformers of timm by short names, `vit-SIZE/PATCH`, built for the image size of training.

Weights have timm's names and load there with `strict=True`. Images may have any size that is a multiple of the patch:
position embeddings are interpolated to the grid, bicubically and by size (DINO's scale factor with an offset shifts
small grids). The output is the class token after the last norm.

`vit-SIZE-moco/PATCH` is MoCo v3's ViT, with fixed 2-D sin-cos positions, its initialization, and 12 heads for small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from corecli.base.errors import UnavailableError, UsageError, unknown_name

Pool = Literal["cls", "mean", "cls+mean"]

PREFIX = "vit-"
DEFAULT_PX = 224
_SPELLING = re.compile(r"vit-(?P<size>[a-z]+)(?P<moco>-moco)?/(?P<patch>[1-9]\d*)")
_MOCO_HEADS = {"small": 12}  # of MoCo v3's code (vits.py); other sizes have the usual number


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width, depth and heads of a ViT."""

    width: int
    depth: int
    heads: int


SIZES = {
    "micro": Size(width=64, depth=4, heads=2),  # for tests and laptops
    "tiny": Size(width=192, depth=12, heads=3),
    "small": Size(width=384, depth=12, heads=6),
    "base": Size(width=768, depth=12, heads=12),
    "large": Size(width=1024, depth=24, heads=16),
    "huge": Size(width=1280, depth=32, heads=16),
}


def build_vit(name: str, *, image_size: int, drop_path: float = 0.0) -> tuple[nn.Module, int]:
    """Return a ViT with random weights, float [B, 3, H, W] -> float [B, D], and its width D.

    drop_path: rate of stochastic depth in the last block; rates rise linearly from 0, and act in training only.
    Errors: UsageError for an unknown name or an image size that is no multiple of the patch; UnavailableError if timm
    is not installed.
    """
    size, heads, patch = _parse(name)
    check_divides(patch, image_size, image_size)
    net: Any = _vision_transformer()(
        img_size=image_size,
        patch_size=patch,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=heads,
        num_classes=0,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
    )
    if "-moco" in name:
        _make_moco(net)
    return net, size.width


def set_image_size(net: Any, image_size: int) -> None:
    """Interpolate the stored positions of a ViT to another image size, as its forward pass does.

    Errors: UsageError for an image size that is no multiple of the patch.
    """
    check_divides(net.patch_embed.patch_size[0], image_size, image_size)
    is_fixed = "pos_embed" in dict(net.named_buffers())
    if is_fixed:
        positions = net.pos_embed
        del net.pos_embed
        net.pos_embed = nn.Parameter(positions, requires_grad=False)  # timm interpolates parameters only
    net.set_input_size(img_size=(image_size, image_size))
    if is_fixed:
        _fix_positions(net, net.pos_embed.detach())


def set_drop_path(net: Any, rate: float) -> None:
    """Set the rates of stochastic depth, which rise linearly from 0 to `rate`, as `build_vit` does.

    Errors: UsageError for other networks.
    """
    if not is_vit(net) or not all(hasattr(block, "drop_path1") for block in net.blocks):
        raise UsageError("this network has no drop path", hint="remove --drop-path, or use a ViT")
    from timm.layers.drop import DropPath

    for block, share in zip(net.blocks, torch.linspace(0, rate, len(net.blocks)).tolist(), strict=True):
        block.drop_path1, block.drop_path2 = DropPath(share), DropPath(share)


def is_vit(net: Any) -> bool:
    """Whether a backbone is a ViT of timm that takes images of any size."""
    return getattr(net, "dynamic_img_size", False) and hasattr(net, "num_prefix_tokens")


def grid_of(net: Any, height: int, width: int) -> tuple[int, int]:
    """Return the number of rows and columns of patches of an image."""
    patch_height, patch_width = net.patch_embed.patch_size
    return height // patch_height, width // patch_width


@contextmanager
def watch_patches(net: Any, *, mask: Tensor | None = None, token: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Collect, inside the context, the patch tokens of every pass through a ViT: float [B, T, D] after the last norm.

    Patches, ordered by rows, whose `mask`, bool [B, T], is true are replaced by `token`, [..., D], before positions are
    added.
    """
    seen: list[Tensor] = []

    def hide(_: nn.Module, __: object, x: Tensor) -> Tensor | None:
        return None if mask is None else torch.where(mask.view(*x.shape[:-1], 1), token.to(x.dtype), x)  # pyright: ignore[reportOptionalMemberAccess]

    def keep(_: nn.Module, __: object, tokens: Tensor) -> None:
        seen.append(tokens[:, net.num_prefix_tokens :])

    hooks = net.patch_embed.register_forward_hook(hide), net.norm.register_forward_hook(keep)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def pooled(net: Any, x: Tensor, pool: Pool, num_blocks: int) -> Tensor:
    """Return the concatenated features of the last blocks, each after the last norm: float [B, D * P].

    x: normalized images. cls: the class token of each block; mean: the mean of each block's patch tokens; cls+mean: the
    class tokens, then the mean of the last block's patch tokens, as in DINOv2's linear evaluation.
    """
    blocks = net.forward_intermediates(
        x, indices=num_blocks, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    means = [patches.mean(1) for patches, _ in blocks] if "mean" in pool else []
    tokens = [prefix[:, 0] for _, prefix in blocks] if "cls" in pool else []
    return torch.cat([*tokens, *(means[-1:] if tokens else means)], dim=1)


def check_pooling(net: Any, pool: Pool, num_blocks: int) -> None:
    """Raise UsageError if a network does not have enough blocks, or no class token if `pool` needs one."""
    if not is_vit(net):
        raise UsageError("this network has no blocks of patches to pool", hint="use a vision transformer")
    if num_blocks > len(net.blocks):
        raise UsageError(f"the network has {len(net.blocks)} blocks, fewer than {num_blocks}")
    if "cls" in pool and getattr(net, "cls_token", None) is None:
        raise UsageError("this transformer has no class token", hint="use --pool mean")


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Return fixed positions of a grid, float [H * W, D]: sine and cosine of row and column (MoCo v3, section 4.2)."""
    frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] * frequencies for n in (height, width))
    rows, columns = rows.repeat_interleave(width, 0), columns.repeat(height, 1)
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()), dim=1).float()


def check_divides(patch: int, height: int, width: int) -> None:
    """Raise UsageError if height or width is no multiple of `patch`, in pixels."""
    for px in (height, width):
        if px % patch:
            lower = px // patch * patch
            near = f"{lower} or {lower + patch}" if lower else f"{patch}"
            raise UsageError(f"patches of {patch} px do not tile {px} px", hint=f"use images of {near} px")


def _parse(name: str) -> tuple[Size, int, int]:
    """Return (size, number of heads, patch size) of a short name."""
    found = _SPELLING.fullmatch(name)
    if found is None:
        raise UsageError(f"{name!r} is not the name of a ViT", hint="write vit-SIZE/PATCH, such as vit-small/16")
    size = SIZES.get(found["size"])
    if size is None:
        raise unknown_name("backbone", name, [f"vit-{s}{found['moco'] or ''}/{found['patch']}" for s in SIZES])
    is_moco = found["moco"] is not None
    return size, _MOCO_HEADS.get(found["size"], size.heads) if is_moco else size.heads, int(found["patch"])


def _vision_transformer() -> Any:
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise UnavailableError("timm is not installed", hint="pip install 'corecli[timm]'") from error
    return VisionTransformer


def _make_moco(net: Any) -> None:
    """Set MoCo v3's fixed positions and its Xavier initialization, with query, key and value separate."""
    height, width = net.patch_embed.grid_size
    dim = net.embed_dim
    _fix_positions(net, torch.cat((torch.zeros(1, dim), sincos_positions(height, width, dim)))[None])
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            for part in module.weight.data.chunk(3 if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(module.bias)
    nn.init.normal_(net.cls_token, std=1e-6)
    convolution = net.patch_embed.proj
    bound = math.sqrt(6 / (convolution.weight[0].numel() + dim))
    nn.init.uniform_(convolution.weight, -bound, bound)
    nn.init.zeros_(convolution.bias)


def _fix_positions(net: Any, positions: Tensor) -> None:
    """Store positions under timm's name as a buffer, so that they are saved but not trained."""
    del net.pos_embed
    net.register_buffer("pos_embed", positions)
