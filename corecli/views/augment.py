"""Random views of whole batches: `draw` draws parameters from a `Policy`, `augment` applies them.

Parameters are drawn for the global batch and are a pure function of (seed, step, view). A rank applies its slice, so
the views do not depend on the number of processes, and a resumed run continues with the same views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from corecli.base.rng import numpy_generator
from corecli.views import color, resample
from corecli.views.policies import Policy

_SHRINKS = (0.5, 0.25)  # 256 px to 128 or 64 (StableRep; SynCLR)
_NUM_TRIES = 10  # random crops to try before the center crop, as in torchvision
_CHUNK_PIXELS = 1 << 18  # of the images of a chunk; they should fit the cache of a core


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The augmentation of each of B images; `parameters[a:b]` and `parameters[rows]` select images."""

    shrink: np.ndarray  # float64 [B]: downsampling factor of the sides; 1: none
    boxes: np.ndarray  # int64 [B, 4]: top, left, height, width of the crop
    flip: np.ndarray  # bool [B]
    order: np.ndarray  # int64 [B, 4]: color operations, first to last; a row of -1: no jitter
    factors: np.ndarray  # float64 [B, 4]: ratios of brightness, contrast, saturation; turns of hue
    grey: np.ndarray  # bool [B]
    sigma: np.ndarray  # float64 [B] of the blur in px; 0: no blur
    solarize: np.ndarray  # bool [B]
    image_size: tuple[int, int]  # H, W that the boxes refer to
    policy: Policy

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the views in px."""
        return self.image_size if self.policy.size is None else (self.policy.size, self.policy.size)

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice | np.ndarray) -> Parameters:
        return _take_rows(self, rows)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """The geometry of the views of B images whose sizes are not known yet; `cuts[rows]` selects images."""

    shrink: np.ndarray  # as in Parameters
    flip: np.ndarray
    shapes: np.ndarray  # float64 [B, tries, 2]: uniform draws for area and ratio
    places: np.ndarray  # float64 [B, 2]: uniform draws for the corner
    policy: Policy

    def __getitem__(self, rows: slice | np.ndarray) -> Cuts:
        return _take_rows(self, rows)

    def boxes(self, image_sizes: np.ndarray) -> np.ndarray:
        """Return boxes int64 [B, 4] of top, left, height, width for images of sizes int64 [B, 2] of H, W."""
        return _crop_boxes(self.policy, image_sizes, self.shapes, self.places)


def draw(policy: Policy, *, seed: int, step: int, view: int, batch: int, image_size: tuple[int, int]) -> Parameters:
    """Return parameters for the `batch` images of a step, all of `image_size` (H, W).

    They are a function of the arguments only. All policies consume the same random numbers, so a weaker policy crops
    near the same positions.
    """
    cuts, parameters = _draw(policy, seed=seed, step=step, view=view, batch=batch)
    boxes = cuts.boxes(np.tile(np.array(image_size), (batch, 1)))
    return replace(parameters, shrink=cuts.shrink, boxes=boxes, flip=cuts.flip, image_size=image_size)


def draw_cuts(policy: Policy, *, seed: int, step: int, view: int, batch: int) -> Cuts:
    """Return the geometry that `draw` has for the same arguments, for images of any sizes."""
    return _draw(policy, seed=seed, step=step, view=view, batch=batch)[0]


def draw_colors(policy: Policy, *, seed: int, step: int, view: int, batch: int) -> Parameters:
    """Return what `draw` has for the same arguments, for views of `policy.size` that are cut already."""
    return _draw(policy, seed=seed, step=step, view=view, batch=batch)[1]


def _draw(policy: Policy, *, seed: int, step: int, view: int, batch: int) -> tuple[Cuts, Parameters]:
    """Return the geometry, and parameters without geometry."""
    g = numpy_generator(seed, "augment", step, view)
    chances = (policy.flip, policy.jitter, policy.grey, policy.blur, policy.solarize)
    flip, jitter, grey, blur, solarize = g.random((5, batch)) < np.array(chances)[:, None]
    order = np.where(jitter[:, None], g.random((batch, 4)).argsort(axis=1), -1)
    shapes, places = g.random((batch, _NUM_TRIES, 2)), g.random((batch, 2))
    factors = _uniform(g, *_factor_ranges(policy), (batch, 4))
    sigma = np.where(blur, _uniform(g, *policy.sigma, batch), 0.0)
    shrink = np.where(g.random(batch) < policy.shrink, g.choice(_SHRINKS, batch), 1.0)
    px = policy.size or 0
    parameters = Parameters(
        shrink=np.ones(batch),
        boxes=np.tile(np.array([0, 0, px, px]), (batch, 1)),
        flip=np.zeros(batch, dtype=bool),
        order=order,
        factors=factors,
        grey=grey,
        sigma=sigma,
        solarize=solarize,
        image_size=(px, px),
        policy=policy,
    )
    return Cuts(shrink=shrink, flip=flip, shapes=shapes, places=places, policy=policy), parameters


_Drawn = TypeVar("_Drawn", Parameters, Cuts)


def _take_rows(drawn: _Drawn, rows: slice | np.ndarray) -> _Drawn:
    arrays = {name: value[rows] for name, value in vars(drawn).items() if isinstance(value, np.ndarray)}
    return replace(drawn, **arrays)


def augment(images: Tensor, parameters: Parameters, *, compile: bool = False) -> Tensor:
    """Return the views of uint8 images [B, 3, H, W]: float32 [B, 3, h, w] in [0, 1] up to rounding.

    Values equal those of torchvision's float functions for the same parameters, in full precision whatever the
    autocast and TF32 settings. `compile` fuses the hue rotation, the longest chain of operations; without a compiler it
    warns once and runs eagerly.
    """
    if len(images) != len(parameters) or tuple(images.shape[-2:]) != parameters.image_size:
        raise ValueError(f"images {tuple(images.shape)} do not match parameters of {len(parameters)} images")
    views = torch.empty(len(images), 3, *parameters.size, device=images.device)
    with torch.no_grad(), _full_precision(images.device):
        if not compile and not resample.dense(images, parameters.size):
            for i, view in enumerate(views):
                view.copy_(_augment_one(images[i : i + 1], parameters[i : i + 1])[0])
            return views
        for rows in _chunks(parameters, images.device):
            _put(views, rows, _augment_chunk(_take(images, rows), parameters[rows], compile))
    return views


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [0, 1], without augmentation."""
    return images.float().div_(255)


def _chunks(p: Parameters, device: torch.device) -> list[np.ndarray]:
    """Return the positions of the batch in the order that `color.jitter` needs, in chunks.

    The chunks fit the cache of a CPU core, and are larger on a GPU.
    """
    order = np.argsort(color.hue_position(p.order), kind="stable")
    budget = _CHUNK_PIXELS if device.type == "cpu" else _CHUNK_PIXELS << 6
    num_pixels = len(p) * max(math.prod(p.size), math.prod(p.image_size))
    return np.array_split(order, max(1, min(len(p), round(num_pixels / budget))))


def _augment_chunk(images: Tensor, p: Parameters, compile: bool) -> Tensor:
    for part in _SHRINKS:
        _change(images, p.shrink == part, partial(resample.shrunk, part=part))
    views = _crop(images, p)
    color.jitter(views.view(len(p), 3, math.prod(p.size)), p.order, p.factors, compile=compile)
    _change(views, p.grey, color.grayscale)
    _change(views, p.sigma > 0, partial(_blur, p=p))
    _change(views, p.solarize, partial(color.solarize, threshold=p.policy.threshold))
    return views


def _augment_one(image: Tensor, p: Parameters) -> Tensor:
    """Return the view of one image [1, 3, H, W]: [1, 3, h, w], or [1, 1, h, w] in gray.

    On a CPU this is faster for large images, as one image fits the cache of a core and its steps need no copies.
    """
    view = _crop(image if p.shrink[0] == 1 else resample.shrunk(image, part=float(p.shrink[0])), p)
    color.jitter_one(view.view(3, -1), p.order[0], p.factors[0])
    view = color.grayscale(view)[:, :1] if p.grey[0] else view
    view = _blur(view, p) if p.sigma[0] > 0 else view
    return color.solarize(view, p.policy.threshold) if p.solarize[0] else view


def _crop(images: Tensor, p: Parameters) -> Tensor:
    if p.size != p.image_size or (p.boxes[:, 2:] != p.image_size).any():
        return resample.resized_crop(images, p.boxes, p.flip, p.size)
    views = to_float(images)
    _change(views, p.flip, partial(torch.flip, dims=(-1,)))
    return views


def _blur(views: Tensor, p: Parameters) -> Tensor:
    sigma = p.sigma[p.sigma > 0]
    if p.policy.blur_kernel == "tenth":  # at least 3 px, or small views would not be blurred
        return resample.gaussian_blur(views, sigma, radius=max(1, min(p.size) // 10 // 2))
    radius = math.ceil(5 * p.policy.sigma[1])  # beyond five sigmas a Gaussian holds less than 1e-6
    return resample.gaussian_blur(views, sigma, radius=radius, edge="replicate")


def _change(views: Tensor, mask: np.ndarray, change: Callable[[Tensor], Tensor]) -> None:
    rows = np.flatnonzero(mask)
    if len(rows):
        _put(views, rows, change(_take(views, rows)))


def _take(images: Tensor, rows: np.ndarray) -> Tensor:
    return images.index_select(0, torch.from_numpy(rows).to(images.device, non_blocking=True))


def _put(images: Tensor, rows: np.ndarray, values: Tensor) -> None:
    if images.device.type == "cpu":
        images.numpy()[rows] = values.numpy()  # several times faster than index_copy_
    else:
        images.index_copy_(0, torch.from_numpy(rows).to(images.device, non_blocking=True), values)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast and TF32, as views must not depend on the precision of the network."""
    b = torch.backends
    backends = (b.cuda.matmul, b.cudnn.conv, b.mkldnn.matmul, b.mkldnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _uniform(
    g: np.random.Generator, low: float | np.ndarray, high: float | np.ndarray, shape: tuple[int, ...] | int
) -> np.ndarray:
    return low + (high - low) * g.random(shape)


def _factor_ranges(policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    strength = np.array([policy.brightness, policy.contrast, policy.saturation, policy.hue])
    center = np.array([1.0, 1.0, 1.0, 0.0])
    low = center - strength
    low[: color.HUE] = low[: color.HUE].clip(0)
    return low, center + strength


def _crop_boxes(policy: Policy, sizes: np.ndarray, shapes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return boxes int64 [B, 4] in images of sizes [B, 2] from uniform draws: shapes [B, tries, 2], places [B, 2].

    As in torchvision, the first try that fits inside the image is taken, else the largest centered box with an allowed
    ratio. A policy without crops takes the whole image, or the central square for views of a size of their own.
    """
    if policy.crop is None:
        sides = sizes if policy.size is None else np.repeat(sizes.min(1, keepdims=True), 2, axis=1)
        return np.concatenate([(sizes - sides) // 2, sides], 1)
    low, high = np.log(policy.ratio)
    area = sizes.prod(1)[:, None] * (policy.crop[0] + (policy.crop[1] - policy.crop[0]) * shapes[..., 0])
    ratio = np.exp(low + (high - low) * shapes[..., 1])
    sides = np.rint(np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], -1)).astype(np.int64)
    fits = np.all((sides > 0) & (sides <= sizes[:, None]), axis=-1)
    chosen = sides[np.arange(len(sides)), fits.argmax(1)]
    corner = np.floor(places * (sizes - chosen + 1)).astype(np.int64)
    boxes = np.concatenate([corner, chosen], 1)
    for row in np.flatnonzero(~np.any(fits, axis=1)):
        boxes[row] = _center_box(policy.ratio, *sizes[row].tolist())
    return boxes


def _center_box(ratio: tuple[float, float], height: int, width: int) -> tuple[int, int, int, int]:
    wide = min(width, round(height * ratio[1]))
    tall = min(height, round(width / ratio[0]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
