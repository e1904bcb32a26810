"""The common corruptions of one image, with their constants for each severity.

The published code calls OpenCV, ImageMagick and scikit-image. These are the same operations in torch and Pillow,
without intermediate rounding; results are rounded once, not truncated, and not compressed again as the files of
ImageNet-C are. Three corruptions differ more: frost is generated, not photographed; fog adds octaves of linear noise
instead of the diamond-square algorithm; elastic_transform warps once, not twice in a row.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import fft
from torch import Tensor

from corecli.base.rng import numpy_generator
from corecli.views import resample

_SMALL_PX = 64
_ICE = torch.tensor((0.86, 0.94, 1.0))


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """`change(x, constant, generator)`, with x float [3, H, W] in [0, 1], and its constants for severities 1 to 5."""

    change: Callable[[Tensor, Any, np.random.Generator], Tensor]
    large: tuple[Any, ...]  # constants of ImageNet-C
    small: tuple[Any, ...]  # constants of CIFAR-C


def apply(image: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Return a corrupted uint8 image [3, H, W]."""
    corruption = TABLE[name]
    constants = corruption.small if min(image.shape[-2:]) <= _SMALL_PX else corruption.large
    changed = corruption.change(image.float() / 255, constants[severity - 1], numpy_generator(seed, "corrupt", name))
    return _to_uint8(changed)


def gaussian_noise(x: Tensor, scale: float, g: np.random.Generator) -> Tensor:
    """Add normal noise with standard deviation `scale`."""
    return x + scale * _normal(g, x.shape)


def shot_noise(x: Tensor, photons: float, g: np.random.Generator) -> Tensor:
    """Replace values by Poisson counts with `photons` photons at full brightness."""
    return torch.from_numpy(g.poisson(x.double().numpy() * photons) / photons)


def impulse_noise(x: Tensor, amount: float, g: np.random.Generator) -> Tensor:
    """Set a share of the values to 0 or 1, in each channel independently."""
    hit, salt = torch.from_numpy(g.random((2, *x.shape)))
    return torch.where(hit < amount, (salt < 0.5).float(), x)


def defocus_blur(x: Tensor, c: tuple[float, float], _: np.random.Generator) -> Tensor:
    """Blur by a disk; constants: its radius in px, and the sigma that softens its edge."""
    radius, sigma = c
    reach = min(math.ceil(radius) + 2, max(8, math.ceil(radius)))  # the published kernels are cut here or end in zeros
    position = torch.arange(-reach, reach + 1.0)
    disk = (position.square() + position[:, None].square() <= radius**2).float()
    disk = _blur(disk[None], sigma, radius=1 if radius <= 8 else 2, edge="reflect")
    return F.conv2d(_pad(x, reach)[:, None], (disk / disk.sum())[None])[:, 0]


def glass_blur(x: Tensor, c: tuple[float, int, int], g: np.random.Generator) -> Tensor:
    """Blur, swap each pixel with a near one, blur again; constants: sigma, largest move in px, rounds of swaps."""
    sigma, reach, rounds = c
    channels, height, width = x.shape
    radius = math.floor(4 * sigma + 0.5)
    order = list(range(height * width))
    down, across = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    for _ in range(rounds):
        moves = g.integers(-reach, reach, (2, len(down), len(across)))
        here = down[:, None] * width + across
        there = here + moves[0] * width + moves[1]
        for a, b in zip(here.ravel().tolist(), there.ravel().tolist(), strict=True):
            order[a], order[b] = order[b], order[a]
    swapped = _blur(x, sigma, radius=radius, edge="replicate").flatten(1)[:, order]
    return _blur(swapped.view(channels, height, width), sigma, radius=radius, edge="replicate")


def motion_blur(x: Tensor, c: tuple[int, float], g: np.random.Generator) -> Tensor:
    """Blur along a line at a random angle of at most 45 degrees; constants: radius in px and sigma."""
    return _trail(x, *c, degrees=g.uniform(-45, 45))


def zoom_blur(x: Tensor, c: tuple[float, float], _: np.random.Generator) -> Tensor:
    """Average the image and its magnifications; constants: the upper bound of the factors, and their step."""
    end, step = c
    factors = np.arange(1, end, step).tolist()
    layers = _read(x, _zoomed(x.shape[1:], *factors)).view(len(x), len(factors), *x.shape[1:])
    return (x + layers.sum(1)) / (len(factors) + 1)


def snow(x: Tensor, c: tuple[float, ...], g: np.random.Generator) -> Tensor:
    """Add falling flakes.

    Constants: mean and standard deviation of noise, its magnification, the threshold below which it is removed, length
    and sigma of the trails, and the weight of the image's own color.
    """
    mean, scale, zoom, threshold, length, sigma, kept = c
    flakes = _read(mean + scale * _normal(g, (1, *x.shape[1:])), _zoomed(x.shape[1:], zoom))
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = _trail(flakes, int(length), sigma, degrees=g.uniform(-135, -45))
    gray = torch.tensor((0.299, 0.587, 0.114)) @ x.flatten(1)
    whitened = kept * x + (1 - kept) * torch.maximum(x, gray.view(1, *x.shape[1:]) * 1.5 + 0.5)
    return whitened + flakes + flakes.rot90(2, (1, 2))


def frost(x: Tensor, c: tuple[float, float], g: np.random.Generator) -> Tensor:
    """Add ice; constants: weight of the image, weight of the ice.

    The published code uses six photographs. Here the ice is generated in bluish white: ridges of three scales, bent by
    a fourth noise, that fade in places.
    """
    size = x.shape[1:]
    ridges = [1 - (2 * _plasma(size, decay, g) - 1).abs() for decay in (1.4, 1.2, 1.05)]
    needles = 0.5 * ridges[0] ** 4 + 0.3 * ridges[1] ** 4 + 0.2 * ridges[2] ** 4
    bend = torch.stack([_plasma(size, 1.8, g) - 0.5 for _ in range(2)])
    needles = _read(needles[None], _positions(size) + bend * min(size) / 3)
    ice = (0.35 + 0.65 * _plasma(size, 1.8, g)) * (0.25 + 0.9 * needles)
    return c[0] * x + c[1] * ice.clamp(0, 1) * _ICE[:, None, None]


def fog(x: Tensor, c: tuple[float, float], g: np.random.Generator) -> Tensor:
    """Add clouds and reduce the contrast; constants: strength, and decay of the finer octaves."""
    brightest = x.max()
    return (x + c[0] * _plasma(x.shape[1:], c[1], g)) * brightest / (brightest + c[0])


def brightness(x: Tensor, added: float, _: np.random.Generator) -> Tensor:
    """Increase HSV's value at the same hue and saturation."""
    value = x.amax(0)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-6)), brighter)


def contrast(x: Tensor, factor: float, _: np.random.Generator) -> Tensor:
    """Shrink the distance to each channel's mean."""
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * factor + mean


def elastic_transform(x: Tensor, c: tuple[float, float, float], g: np.random.Generator) -> Tensor:
    """Apply a random affine map of three points, then a smooth random displacement of each pixel.

    Constants, as shares of the shorter side: largest displacement of pixels, sigma of the displacement field, largest
    displacement of the points.
    """
    height, width = x.shape[1:]
    reach, sigma, corner = (part * min(height, width) for part in c)
    middle, third = np.array([height // 2, width // 2]), min(height, width) // 3
    points = middle + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = points + g.uniform(-corner, corner, points.shape)
    back = np.linalg.lstsq(np.c_[moved, np.ones(3)], points, rcond=None)[0]  # [3, 2]: maps a moved point to its source
    field = np.stack([_smoothed(g.uniform(-1, 1, (height, width)), sigma) for _ in range(2)])
    target = np.mgrid[:height, :width] + reach * field
    source = np.tensordot(back[:2].T, target, 1) + back[2][:, None, None]
    return _read(x, torch.from_numpy(source))


def pixelate(x: Tensor, scale: float, _: np.random.Generator) -> Tensor:
    """Downsample with a box filter and upsample again."""
    image = _to_pillow(x)
    small = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BOX)
    return _from_pillow(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(x: Tensor, quality: int, _: np.random.Generator) -> Tensor:
    """Compress as JPEG with the given quality."""
    buffer = io.BytesIO()
    _to_pillow(x).save(buffer, "JPEG", quality=quality)
    return _from_pillow(Image.open(buffer))


def _trail(x: Tensor, radius: int, sigma: float, *, degrees: float) -> Tensor:
    """Blur along a line by half a Gaussian of 2 radius + 1 px, as in ImageMagick; edge pixels are replicated."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = math.radians(degrees)
    rows, columns = (np.ceil(steps * part - 0.5).astype(int) for part in (math.sin(angle), math.cos(angle)))
    top, left = max(0, -rows.min()), max(0, -columns.min())
    padded = F.pad(x[None], (left, max(0, columns.max()), top, max(0, rows.max())), mode="replicate")[0]
    out = torch.zeros_like(x)
    for weight, row, column in zip(weights / weights.sum(), rows + top, columns + left, strict=True):
        out.add_(padded[:, row : row + x.shape[1], column : column + x.shape[2]], alpha=float(weight))
    return out


def _zoomed(size: Sequence[int], *factors: float) -> Tensor:
    """Return positions [2, K * H, W] that magnify an image of this size about its center by each of K factors."""
    center = (torch.tensor(size)[:, None, None] - 1) / 2
    offset = _positions(size) - center
    return torch.cat([center + offset / factor for factor in factors], dim=1)


def _positions(size: Sequence[int]) -> Tensor:
    """Return the row and the column of each pixel: [2, H, W]."""
    return torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"))


def _read(x: Tensor, position: Tensor) -> Tensor:
    """Sample x [C, H, W] at positions [2, h, w] of (row, column) in px, bilinear, reflected at the edges."""
    size = torch.tensor(x.shape[1:])[:, None, None]
    grid = ((2 * position + 1) / size - 1).flip(0).movedim(0, -1)
    return F.grid_sample(x[None], grid[None].to(x.dtype), padding_mode="reflection", align_corners=False)[0]


def _plasma(size: Sequence[int], decay: float, g: np.random.Generator) -> Tensor:
    """Return cloudy noise [H, W] in [0, 1]: octaves of linear noise, each weaker by a factor of `decay` squared."""
    num_octaves = max(1, math.ceil(math.log2(max(size))))
    clouds = torch.zeros(1, 1, *size)
    for octave in range(1, num_octaves + 1):
        coarse = torch.from_numpy(g.uniform(-1, 1, (1, 1, 2**octave, 2**octave))).float()
        clouds += F.interpolate(coarse, tuple(size), mode="bilinear", align_corners=True) / decay ** (2 * octave)
    low, high = clouds.aminmax()
    return ((clouds - low) / (high - low).clamp(min=1e-6))[0, 0]


def _smoothed(field: np.ndarray, sigma: float) -> np.ndarray:
    """Blur a field [H, W] by a Gaussian of any width, reflected at the edges, as a product of cosine coefficients."""
    rows, columns = (np.exp(-0.5 * (sigma * np.pi * np.arange(size) / size) ** 2) for size in field.shape)
    return np.asarray(fft.idctn(fft.dctn(field) * rows[:, None] * columns))


def _blur(x: Tensor, sigma: float, *, radius: int, edge: resample.Edge) -> Tensor:
    return resample.gaussian_blur(x[None], np.array([sigma]), radius=radius, edge=edge)[0]


def _pad(x: Tensor, pad: int) -> Tensor:
    return torch.from_numpy(np.pad(x.numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect"))


def _normal(g: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(g.standard_normal(shape, dtype=np.float32))


def _to_uint8(x: Tensor) -> Tensor:
    return (x * 255).round_().clamp_(0, 255).byte()


def _to_pillow(x: Tensor) -> Image.Image:
    return Image.fromarray(_to_uint8(x).permute(1, 2, 0).numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


_ELASTIC_SIDE = 244 / 224  # ImageNet-C's constants are shares of 244 px, for images of 224

TABLE: dict[str, Corruption] = {
    "gaussian_noise": Corruption(
        change=gaussian_noise, large=(0.08, 0.12, 0.18, 0.26, 0.38), small=(0.04, 0.06, 0.08, 0.09, 0.10)
    ),
    "shot_noise": Corruption(change=shot_noise, large=(60, 25, 12, 5, 3), small=(500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(
        change=impulse_noise, large=(0.03, 0.06, 0.09, 0.17, 0.27), small=(0.01, 0.02, 0.03, 0.05, 0.07)
    ),
    "defocus_blur": Corruption(
        change=defocus_blur,
        large=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        small=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": Corruption(
        change=glass_blur,
        large=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        small=((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": Corruption(
        change=motion_blur,
        large=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        small=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": Corruption(
        change=zoom_blur,
        large=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        small=((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": Corruption(
        change=snow,
        large=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        small=(
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(
        change=frost,
        large=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        small=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": Corruption(
        change=fog,
        large=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        small=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": Corruption(change=brightness, large=(0.1, 0.2, 0.3, 0.4, 0.5), small=(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(change=contrast, large=(0.4, 0.3, 0.2, 0.1, 0.05), small=(0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        change=elastic_transform,
        large=tuple(
            tuple(_ELASTIC_SIDE * part for part in parts)
            for parts in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        small=((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption(change=pixelate, large=(0.6, 0.5, 0.4, 0.3, 0.25), small=(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(change=jpeg_compression, large=(25, 18, 15, 10, 7), small=(80, 65, 58, 50, 40)),
}
