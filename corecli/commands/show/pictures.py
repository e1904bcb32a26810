"""Pictures of images: contact sheets, nearest neighbors, attention, patch features, captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corecli.base.errors import DataError
from corecli.data.joins import find
from corecli.data.rows import Rows, as_array, count_groups
from corecli.data.strings import pack

if TYPE_CHECKING:
    import torch

    from corecli.data.captions import Captions
    from corecli.data.features import FeatureTable
    from corecli.data.imageset import ImageSet
    from corecli.nets.encoder import Encoder

_ATTENTION_PX = 160  # minimum size of an image with attention
_NIGHT = (22, 20, 52)  # tint of patches without attention, visible on black too
_HEAT = ((0, (12, 8, 38)), (0.3, (92, 20, 110)), (0.6, (212, 72, 66)), (0.82, (250, 158, 8)), (1, (252, 252, 178)))


def draw_sheet(out: Path, data: ImageSet, real: ImageSet | None, *, columns: int, rows: int) -> None:
    """Draw the first images of a set as a grid, or its groups as columns, each below its real image."""
    from corecli.draw.sheet import write_sheet

    if real is None and count_groups(data.rows) == len(data.rows):
        images = data.read_array(np.arange(min(len(data.rows), columns * rows)))
        write_sheet(out, images, columns=columns)
    else:
        images, columns = _by_group(data, real, columns=columns, rows=rows)
        write_sheet(out, images, columns=columns, head_rows=int(real is not None))


def draw_neighbors(
    out: Path,
    data: tuple[ImageSet, FeatureTable],
    reference: tuple[ImageSet, FeatureTable] | None,
    *,
    columns: int,
    rows: int,
) -> None:
    """Draw images of a set, one per row, followed by the nearest ones by cosine similarity.

    Neighbors come from the reference, or without one from the set itself, excluding the image. Errors: DataError for
    images without a feature, tables of different dimensions, or too few images.
    """
    from corecli.draw.sheet import write_sheet

    images, table = data
    others, other_table = reference or data
    _refuse_other_size(images, others)
    queries = evenly(len(images.rows), rows)
    own = reference is None
    k = min(columns - 1, len(others.rows) - int(own))
    if k < 1:
        raise DataError("no images to search for neighbors", hint="use --columns 2 or more, and more images")
    x = table.lookup(images.rows.keys.take(queries))
    y = other_table.lookup(others.rows.keys)
    cosines, found = _nearest(x, y, k, leave_out=queries if own else None)
    lines, captions = [], []
    for row, near, scores in zip(queries, found, cosines, strict=True):
        lines += [images.read_array(np.array([row])), others.read_array(near.numpy())]
        captions += ["", *(f"{score:.2f}" for score in scores.tolist())]
    write_sheet(out, np.concatenate(lines), columns=1 + k, head_columns=1, captions=captions)


def draw_attention(out: Path, data: ImageSet, encoder: Encoder, *, columns: int, rows: int, mass: float | None) -> None:
    """Draw images of a set, one per row, followed by the attention of the class token in the last block, by head.

    mass: None draws a heat map; a number keeps the patches that together have this share of a head's attention.
    Errors: UsageError for an encoder without attention.
    """
    import torch

    from corecli.draw.sheet import write_sheet
    from corecli.nets.attention import class_attention

    attention, images = class_attention(encoder, data.read(evenly(len(data.rows), rows)))
    attention, images = attention[:, : max(1, columns - 1)].cpu(), images.cpu()
    scale = max(1, round(_ATTENTION_PX / images.shape[-1]))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    if mass is None:
        drawn = [_heated(image, heads) for image, heads in zip(images, attention, strict=True)]
    else:
        drawn = [_kept(image, keep_mass(heads, mass)) for image, heads in zip(images, attention, strict=True)]
    lines = torch.cat([torch.cat([image[None], heads]) for image, heads in zip(images, drawn, strict=True)])
    num_heads = attention.shape[1]
    captions = ["", *(f"head {head + 1}" for head in range(num_heads))] * len(images)
    write_sheet(out, lines.numpy(), columns=1 + num_heads, head_columns=1, captions=captions)


def draw_pca(out: Path, data: ImageSet, encoder: Encoder, *, columns: int, rows: int) -> None:
    """Draw images of a set, and below each its patches, colored by principal components shared by all images.

    Images keep the size that they have in the set. Errors: UsageError for an encoder without patches.
    """
    import torch

    from corecli.draw.embedding import color_patches
    from corecli.draw.sheet import write_sheet
    from corecli.nets.patches import enlarge, patch_features
    from corecli.views.augment import to_float

    images = data.read(evenly(len(data.rows), columns * max(1, rows // 2)))
    height, width = images.shape[-2:]
    with torch.no_grad():
        maps = torch.cat([patch_features(encoder, to_float(one.to(encoder.mean.device))) for one in images.split(16)])
    colors = enlarge(encoder, color_patches(maps), (height, width), mode="nearest").mul(255).round().byte().cpu()
    columns = min(columns, len(images))
    blank = images.new_full((-len(images) % columns, 3, height, width), 255)
    lines = (torch.cat([part, blank]).split(columns) for part in (images, colors))
    drawn = torch.cat([both for pair in zip(*lines, strict=True) for both in pair])
    write_sheet(out, drawn.numpy(), columns=columns, shown_px=_ATTENTION_PX)


def draw_captioned(out: Path, data: ImageSet, captions: Captions, *, columns: int, rows: int) -> None:
    """Draw evenly chosen groups of a set, each with its caption above its images. Errors: DataError."""
    from corecli.draw.sheet import write_captioned

    members, starts = _members(data.rows)
    texts = as_array(find(data.rows.groups.take(members[starts[:-1]]), pack(captions.ids)))
    known = np.flatnonzero(texts >= 0)
    if not len(known):
        raise DataError(
            f"no caption has the id of a group, such as {data.rows.groups[0]}", hint="use the captions of this set"
        )
    chosen = known[evenly(len(known), rows)].tolist()
    shown = [(captions.texts[texts[g]], members[starts[g] : min(starts[g] + columns, starts[g + 1])]) for g in chosen]
    write_captioned(out, [(text, data.read_array(images)) for text, images in shown])


def evenly(num: int, most: int) -> np.ndarray:
    """Return up to `most` of `num` rows, evenly spaced: int64."""
    return np.linspace(0, num - 1, min(num, most)).astype(np.int64)


def keep_mass(attention: torch.Tensor, mass: float) -> torch.Tensor:
    """Return the strongest patches that together have the share `mass` of the attention: bool [..., h, w].

    DINO draws them with mass 0.6.
    """
    import torch

    flat = attention.flatten(-2)
    ascending, order = (flat / flat.sum(-1, keepdim=True)).sort(dim=-1)
    kept = ascending.cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter_(-1, order, kept).view_as(attention)


def _by_group(data: ImageSet, real: ImageSet | None, *, columns: int, rows: int) -> tuple[np.ndarray, int]:
    """Return the images of evenly chosen groups, one column each, real images on top; and the number of columns."""
    members, starts = _members(data.rows)
    sources = np.arange(len(starts) - 1)
    if real is not None:
        sources = as_array(find(data.rows.groups.take(members[starts[:-1]]), real.rows.keys))
    groups = np.flatnonzero(sources >= 0)
    if not len(groups):
        raise DataError("no image has the key of a group", hint="use the images that the set was made from")
    if real is not None:
        _refuse_other_size(data, real)
    chosen = groups[evenly(len(groups), columns)]
    height = min(rows - int(real is not None), int(np.diff(starts)[chosen].min()))
    lines = [data.read_array(members[starts[chosen] + i]) for i in range(height)]
    if real is not None:
        lines.insert(0, real.read_array(sources[chosen]))
    return np.concatenate(lines), len(chosen)


def _members(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows by group, each group's in order; the place of the first of each group, and their number)."""
    starts = np.cumsum([0, *np.bincount(rows.group_ids)])
    return np.argsort(rows.group_ids, kind="stable"), starts


def _refuse_other_size(data: ImageSet, real: ImageSet) -> None:
    (height, width), (real_height, real_width) = data.image_size, real.image_size
    if (height, width) != (real_height, real_width):
        reason = f"images of {width} x {height} cannot be drawn beside real ones of {real_width} x {real_height}"
        raise DataError(reason, hint="--image-size N resizes and crops all to N x N")


def _nearest(
    x: torch.Tensor, y: torch.Tensor, k: int, *, leave_out: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch
    import torch.nn.functional as F

    if x.shape[1] != y.shape[1]:
        hint = "extract both with one encoder and one layer"
        raise DataError(f"features of {x.shape[1]} and {y.shape[1]} dimensions cannot be compared", hint=hint)
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    if leave_out is not None:
        cosines.scatter_(1, torch.from_numpy(leave_out)[:, None], -torch.inf)
    return cosines.topk(k, dim=1)


def _heated(image: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Draw the heat maps of heads [K, h, w] over a gray image, uint8 [3, H, W]: uint8 [K, 3, H, W]."""
    import torch
    import torch.nn.functional as F

    heat = F.interpolate(heads[:, None], image.shape[-2:], mode="bicubic", align_corners=False)[:, 0]
    low, high = (bound(heat, dim=(1, 2), keepdim=True) for bound in (torch.amin, torch.amax))
    strength = ((heat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    anchors = [position for position, _ in _HEAT]
    colors = np.array([color for _, color in _HEAT], dtype=np.float32)
    mapped = np.stack([np.interp(strength.numpy(), anchors, channel) for channel in colors.T], axis=1)
    gray = image.float().mean(0)
    return (0.3 * gray + 0.7 * torch.from_numpy(mapped)).round().byte()


def _kept(image: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Dim all but the kept patches, bool [K, h, w], of an image, uint8 [3, H, W]: uint8 [K, 3, H, W]."""
    import torch
    import torch.nn.functional as F

    shown = F.interpolate(kept[:, None].float(), image.shape[-2:], mode="nearest") > 0
    night = torch.tensor(_NIGHT)[:, None, None]
    return torch.where(shown, image, (0.22 * image.float().mean(0) + night).byte())
