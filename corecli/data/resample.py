"""Crops and blurs with parameters of their own for every image of a batch.

Both are separable linear maps, one matrix for the rows and one for the columns of an image. Small images, and any
image on a GPU, go through these matrices in two batched products; on a CPU a larger image is cheaper through torch's
own kernels, which give the same values (the measured crossing is near 64 px).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Edge = Literal["reflect", "replicate"]

_LARGEST_DENSE_PX = 64


def resized_crop(images: Tensor, boxes: np.ndarray, flip: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Cut one box out of every image, resize it and mirror it where asked: as `resized_crop` of torchvision on floats
    with bicubic interpolation (a = -0.5) and `antialias=True`, which is also Pillow's filter, then clamp.

    images: uint8 [B, C, H, W]; boxes: int64 [B, 4] of top, left, height, width; flip: bool [B].
    Returns float32 [B, C, *size] in [0, 1].
    """
    if not _dense(images, size):
        return _crop_one_by_one(images, boxes, flip, size)
    num_rows, num_columns = images.shape[-2:]
    box, mirrored = _move(boxes.T, images), _move(flip, images)
    rows = _resize_matrices(box[0], box[2], None, size[0], num_rows)
    columns = _resize_matrices(box[1], box[3], mirrored, size[1], num_columns)
    return _separable(images.float(), rows.div_(255), columns).clamp_(0, 1)


def gaussian_blur(images: Tensor, sigma: np.ndarray, *, radius: int, edge: Edge = "reflect") -> Tensor:
    """Blur every image by its own sigma with a kernel of `2 * radius + 1` px that sums to one.

    With edges continued by reflection it is torchvision's `gaussian_blur`; Pillow replicates the outermost pixels.
    images: float [B, C, H, W]; sigma: float [B] in px, above 0. Returns float [B, C, H, W].
    """
    offset = torch.arange(-radius, radius + 1, device=images.device)
    kernels = torch.softmax(-(offset**2) / (2 * _move(sigma, images).float()[:, None] ** 2), dim=1)
    if kernels.shape[1] * 4 <= min(images.shape[-2:]):
        return _blur_by_convolution(images, kernels, edge)
    rows, columns = (_blur_matrices(kernels, size, edge) for size in images.shape[-2:])
    return _separable(images, rows, columns)


def _dense(images: Tensor, size: tuple[int, ...]) -> bool:
    return images.device.type != "cpu" or max(*size, *images.shape[-2:]) <= _LARGEST_DENSE_PX


def _move(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device, non_blocking=True)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [B, h, H] @ images [B, C, H, W] @ columns [B, w, W] transposed -> [B, C, h, w]."""
    batch, channels, num_rows, num_columns = images.shape
    wide = torch.bmm(images.reshape(batch, channels * num_rows, num_columns), columns.transpose(1, 2))
    return rows[:, None] @ wide.view(batch, channels, num_rows, -1)


def _resize_matrices(start: Tensor, length: Tensor, flip: Tensor | None, out: int, size: int) -> Tensor:
    """The maps of `size` pixels to `out` that resize the range of `length` from `start`: float32 [B, out, size].

    The kernel widens with the range when it shrinks (antialiasing), is cut at the range's ends and renormalised.
    An output's centre is kept as whole pixels and a rest, so that float32 is exact enough for any size of image.
    """
    position = torch.arange(1, 2 * out, 2, device=start.device).expand(len(start), out)
    if flip is not None:
        position = torch.where(flip[:, None], position.flip(1), position)
    pixel = (position * length[:, None]).div_(2 * out, rounding_mode="floor")
    rest = (position * length[:, None] - pixel * (2 * out)).float().div_(2 * out)
    stretch = (length / out).clamp_(min=1)[:, None]
    first = torch.floor(rest - 2 * stretch + 0.5)
    num_taps = 2 * math.ceil(2 * max(1.0, size / out)) + 1  # enough for any range, so that no sum depends on the others
    taps = first + torch.arange(num_taps, device=start.device)[:, None, None]  # [taps, B, out]: long inner loops
    weights = _cubic((taps + (0.5 - rest)).div_(stretch).abs_())
    taps += pixel
    last = (length - 1).float()[:, None]
    weights.mul_(taps >= 0).mul_(taps <= last)
    weights /= weights.sum(0)
    index = torch.minimum(taps.clamp_(min=0), last).add_(start[:, None]).long()
    dense = torch.zeros(len(start), out, size, device=start.device)
    return dense.scatter_add_(2, index.permute(1, 2, 0), weights.permute(1, 2, 0))


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 of distance >= 0: zero at 1 and from 2 on. Two clamps spare it all masks."""
    near, far = distance.clamp(max=1), distance.sub(1).clamp_(0, 1)
    inner = (1.5 * near).sub_(2.5).mul_(near).mul_(near).add_(1)
    return inner.addcmul_((1 - far).square_(), far, value=-0.5)


def _crop_one_by_one(images: Tensor, boxes: np.ndarray, flip: np.ndarray, size: tuple[int, int]) -> Tensor:
    out = torch.empty(*images.shape[:2], *size)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        box = images[i : i + 1, :, top : top + height, left : left + width].float()
        view = F.interpolate(box, size, mode="bicubic", antialias=True)
        out[i] = view[0].flip(-1) if flip[i] else view[0]
    return out.mul_(1 / 255).clamp_(0, 1)


def _blur_matrices(kernels: Tensor, size: int, edge: Edge) -> Tensor:
    """[B, K] kernels as maps of `size` pixels to themselves: [B, size, size]."""
    num_taps = kernels.shape[1]
    pixel = torch.arange(size, device=kernels.device)
    source = pixel + (torch.arange(num_taps, device=kernels.device) - num_taps // 2)[:, None]
    if edge == "reflect":
        source = source.remainder(max(1, 2 * size - 2))
        source = torch.minimum(source, 2 * size - 2 - source)
    shifts = source.clamp_(0, size - 1)[:, :, None] == pixel  # [K, size, size]: one shift for every tap
    return (kernels @ shifts.flatten(1).float()).view(-1, size, size)


def _blur_by_convolution(images: Tensor, kernels: Tensor, edge: Edge) -> Tensor:
    batch, channels, height, width = images.shape
    pad, groups = kernels.shape[1] // 2, batch * channels
    padded = F.pad(images, (pad, pad, pad, pad), mode=edge).view(1, groups, height + 2 * pad, width + 2 * pad)
    weight = kernels.repeat_interleave(channels, 0)[:, None, None]
    columns = F.conv2d(padded, weight, groups=groups)
    return F.conv2d(columns, weight.transpose(2, 3), groups=groups).view_as(images)
