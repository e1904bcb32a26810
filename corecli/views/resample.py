"""Crops and blurs with parameters for each image of a batch.

Both are separable: each row of the result is a weighted sum of a few rows, its taps, and so is each column. On a CPU,
the embedding-bag kernel computes these sums. On a GPU, and for small images, whose matrices are mostly taps, they are
two batched matrix products.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Edge = Literal["reflect", "replicate"]

_LARGEST_DENSE_PX = 80  # up to here matrices are at least as fast
_SEGMENT_PX = 16  # of a row; shorter ones make small products, longer ones multiply more zeros
_REACH_SIGMAS = 5.5  # a Gaussian has 4e-8 of its mass beyond, less than float32 resolves


def dense(images: Tensor, size: tuple[int, ...]) -> bool:
    """Whether images are transformed to `size` (H, W) in batches; on a CPU large ones are faster one by one."""
    return images.device.type != "cpu" or max(*size, *images.shape[-2:]) <= _LARGEST_DENSE_PX


def resized_crop(images: Tensor, boxes: np.ndarray, flip: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return a resized, optionally flipped crop of each image: float32 [B, C, *size] in [0, 1].

    images: uint8 [B, C, H, W]; boxes: int64 [B, 4] of top, left, height, width; flip: bool [B]. Values are those of
    torchvision's `resized_crop` on floats with bicubic interpolation (a = -0.5) and `antialias=True`, which is also
    Pillow's filter, then clamped.
    """
    num_rows, num_columns = images.shape[-2:]
    (top, left, height, width), mirrored = _move(boxes.T, images), _move(flip, images)
    rows, row_weights = _resize_taps(height, None, size[0], num_rows)
    columns, column_weights = _resize_taps(width, mirrored, size[1], num_columns)
    row_weights /= 255
    if dense(images, size):
        down = _matrices(rows + top[:, None, None], row_weights, num_rows)
        across = _matrices(columns + left[:, None, None], column_weights, num_columns)
        return _product(images.float(), down, across).clamp_(0, 1)
    out = torch.empty(*images.shape[:2], *size)
    for i, (y, x, h, w) in enumerate(boxes.tolist()):
        turned = _sum_taps(images[i, :, y : y + h, x : x + w].float().mT, columns[i], column_weights[i])
        torch.clamp(_sum_taps(turned.mT, rows[i], row_weights[i]), 0, 1, out=out[i])
    return out


def shrunk(images: Tensor, *, part: float) -> Tensor:
    """Return uint8 images [B, C, H, W] resized to `part` of their sides and back, rounded each time as in Pillow."""
    height, width = images.shape[-2:]
    for size in ((max(1, round(height * part)), max(1, round(width * part))), (height, width)):
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    return images


def gaussian_blur(images: Tensor, sigma: np.ndarray, *, radius: int, edge: Edge = "reflect") -> Tensor:
    """Blur each image by its own sigma with a kernel of `2 * radius + 1` px that sums to 1: float [B, C, H, W].

    images: float [B, C, H, W]; sigma: float [B] in px, above 0. Edge "reflect" gives torchvision's
    `gaussian_blur`; Pillow uses "replicate".
    """
    offset = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-(offset**2) / (2 * _move(sigma, images).float()[:, None] ** 2), dim=1)
    if not dense(images, images.shape[-2:]):
        return _blur_one_by_one(images, kernels, np.ceil(_REACH_SIGMAS * sigma).clip(max=radius), edge)
    if kernels.shape[1] * 4 <= min(images.shape[-2:]):
        return _blur_by_convolution(images, kernels, edge)
    rows, columns = (_blur_matrices(kernels, size, edge) for size in images.shape[-2:])
    return _product(images, rows, columns)


def _move(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device, non_blocking=True)


def _resize_taps(length: Tensor, flip: Tensor | None, out: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the taps and weights that resize ranges of `length` <= size to `out` pixels: int64 and float [B, out, K].

    The kernel widens when the range shrinks (antialiasing), is cut at the ends of the range and renormalized. The
    center of an output pixel is split into whole pixels and a rest, so float32 is precise enough for any image size.
    """
    position = torch.arange(1, 2 * out, 2, device=length.device).expand(len(length), out)
    if flip is not None:
        position = torch.where(flip[:, None], position.flip(1), position)
    pixel = (position * length[:, None]).div_(2 * out, rounding_mode="floor")
    rest = (position * length[:, None] - pixel * (2 * out)).float().div_(2 * out)
    stretch = (length / out).clamp_(min=1)[:, None]
    first = torch.floor(rest - 2 * stretch + 0.5)
    num_taps = (
        2 * math.ceil(2 * max(1.0, size / out)) + 1
    )  # enough for any range, so that no sum depends on other images
    taps = first + torch.arange(num_taps, device=length.device)[:, None, None]  # [K, B, out]: long inner loops
    weights = _cubic((taps + (0.5 - rest)).div_(stretch).abs_())
    taps += pixel
    last = (length - 1).float()[:, None]
    weights.mul_(taps >= 0).mul_(taps <= last)
    weights /= weights.sum(0)
    index = torch.minimum(taps.clamp_(min=0), last).long()
    return index.permute(1, 2, 0), weights.permute(1, 2, 0)


def _cubic(distance: Tensor) -> Tensor:
    """Return Keys' cubic kernel with a = -0.5 for distance >= 0; it is 0 at 1 and from 2 on. Clamps replace masks."""
    near, far = distance.clamp(max=1), distance.sub(1).clamp_(0, 1)
    inner = (1.5 * near).sub_(2.5).mul_(near).mul_(near).add_(1)
    return inner.addcmul_((1 - far).square_(), far, value=-0.5)


def _blur_one_by_one(images: Tensor, kernels: Tensor, radii: np.ndarray, edge: Edge) -> Tensor:
    out, center = torch.empty_like(images), kernels.shape[1] // 2
    for image, kernel, radius, blurred in zip(images, kernels, radii.astype(int).tolist(), out, strict=True):
        kernel = kernel[center - radius : center + radius + 1]
        sources = _cached_blur_sources(image.shape[1], len(kernel), edge, images.device)
        _blur_rows(_sum_taps(image, sources, kernel), kernel, edge, blurred)
    return out


def _blur_rows(planes: Tensor, kernel: Tensor, edge: Edge, out: Tensor) -> None:
    """Blur planes [C, H, W] along their rows: segments of a few pixels are products with one small band matrix."""
    num, height, width = planes.shape
    num_segments = math.ceil(width / _SEGMENT_PX)
    length, pad = math.ceil(width / num_segments), len(kernel) // 2
    padded = F.pad(planes, (pad, pad + num_segments * length - width, 0, 0), mode=edge).flatten(0, 1)
    band = torch.zeros(length, length + 2 * pad + 1)
    band[:, : len(kernel)] = kernel  # shifted by one pixel from row to row in the next line, which drops a column
    band = band.flatten()[: length * (length + 2 * pad)].view(length, -1)
    segments = padded.unfold(1, length + 2 * pad, length).transpose(0, 1)
    blurred = torch.bmm(segments, band.T.expand(num_segments, -1, -1)).view(num_segments, num, height, length)
    whole = width // length
    out[..., : whole * length].unflatten(2, (whole, length)).copy_(blurred[:whole].permute(1, 2, 0, 3))
    if whole < num_segments:
        out[..., whole * length :] = blurred[whole, ..., : width - whole * length]


def _blur_matrices(kernels: Tensor, size: int, edge: Edge) -> Tensor:
    """Return kernels [B, K] as matrices [B, size, size]."""
    sources = _blur_sources(size, kernels.shape[1], edge, kernels.device)
    shifts = sources.T[:, :, None] == torch.arange(size, device=kernels.device)  # [K, size, size], one for each tap
    return (kernels @ shifts.flatten(1).float()).view(-1, size, size)


def _blur_sources(size: int, num_taps: int, edge: Edge, device: torch.device) -> Tensor:
    """Return the pixels around each of `size` pixels: int64 [size, K]."""
    around = torch.arange(num_taps, device=device) - num_taps // 2
    source = torch.arange(size, device=device)[:, None] + around
    if edge == "reflect":
        source = source.remainder(max(1, 2 * size - 2))
        source = torch.minimum(source, 2 * size - 2 - source)
    return source.clamp_(0, size - 1)


_cached_blur_sources = lru_cache(maxsize=64)(_blur_sources)


def _sum_taps(planes: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums [C, h, W] of K rows of each plane [C, H, W]; taps: int64 [h, K], weights: [h, K] or [K]."""
    num, height, width = planes.shape
    bags = taps + torch.arange(0, num * height, height)[:, None, None]  # [C, h, K]: rows of all planes, concatenated
    weights = weights.expand_as(bags).flatten(0, 1)
    sums = F.embedding_bag(bags.flatten(0, 1), planes.reshape(-1, width), per_sample_weights=weights, mode="sum")
    return sums.view(num, -1, width)


def _matrices(taps: Tensor, weights: Tensor, size: int) -> Tensor:
    """Return taps and weights [B, out, K] as matrices [B, out, size]."""
    dense = torch.zeros(*taps.shape[:2], size, device=taps.device)
    return dense.scatter_add_(2, taps, weights)


def _product(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows [B, h, H] @ images [B, C, H, W] @ transposed columns [B, w, W]: [B, C, h, w]."""
    batch, channels, num_rows, num_columns = images.shape
    wide = torch.bmm(images.reshape(batch, channels * num_rows, num_columns), columns.transpose(1, 2))
    return rows[:, None] @ wide.view(batch, channels, num_rows, -1)


def _blur_by_convolution(images: Tensor, kernels: Tensor, edge: Edge) -> Tensor:
    batch, channels, height, width = images.shape
    pad, groups = kernels.shape[1] // 2, batch * channels
    padded = F.pad(images, (pad, pad, pad, pad), mode=edge).view(1, groups, height + 2 * pad, width + 2 * pad)
    weight = kernels.repeat_interleave(channels, 0)[:, None, None]
    columns = F.conv2d(padded, weight, groups=groups)
    return F.conv2d(columns, weight.transpose(2, 3), groups=groups).view_as(images)
