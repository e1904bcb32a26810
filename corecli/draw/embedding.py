"""Projections of features to two dimensions: principal components and t-SNE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LARGEST_TSNE = 3000  # rows; each step visits every pair
_BLOCK = 8192
NUM_STEPS = 750
_EARLY_STEPS = 250
_EXAGGERATION = 12.0
_HALVINGS = 50


def pca(features: Tensor, num_axes: int = 2) -> tuple[Tensor, Tensor]:
    """Project features [N, D] to their A directions of largest variance.

    Returns the points, float64 [N, A], and the share of variance of each direction, [A]. Signs are fixed: the weight of
    largest magnitude in a direction is positive.
    """
    mean = features.mean(0, dtype=torch.float64)
    scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64, device=features.device)
    for block in features.split(_BLOCK):
        centered = block.double() - mean
        scatter.addmm_(centered.T, centered)
    values, vectors = torch.linalg.eigh(scatter)
    axes = torch.zeros(features.shape[1], num_axes, dtype=torch.float64, device=features.device)
    found = vectors.flip(1)[:, :num_axes]
    found = found * found.gather(0, found.abs().argmax(0, keepdim=True)).sign()
    axes[:, : found.shape[1]] = found
    points = torch.cat([(block.double() - mean) @ axes for block in features.split(_BLOCK)])
    shares = torch.zeros(num_axes, dtype=torch.float64)
    shares[: found.shape[1]] = (values.flip(0)[:num_axes] / values.sum().clamp(min=1e-300)).clamp(min=0).cpu()
    return points, shares


def color_patches(maps: Tensor) -> Tensor:
    """Map patch features [B, D, h, w] to colors shared by all images: float32 [B, 3, h, w] in [0, 1].

    The first principal component of all patches separates foreground from background; the background is the side of the
    mean where image borders are on average. The first three components of the foreground are red, green and blue, each
    scaled from its minimum to its maximum; the background is black (DINOv2, Figure 1; SynCLR, Figure 5). Signs are
    those of `pca`.
    """
    patches = maps.float().movedim(1, -1)
    border = torch.ones(patches.shape[:3], dtype=torch.bool, device=maps.device)
    border[:, 1:-1, 1:-1] = False
    first = pca(patches.flatten(0, 2), 1)[0].view(border.shape)
    foreground = first > 0 if first[border].mean() <= 0 else first < 0
    if not foreground.any():
        foreground = torch.ones_like(border)
    points = pca(patches[foreground], 3)[0]
    low, high = points.amin(0), points.amax(0)
    colors = torch.zeros(*border.shape, 3, device=maps.device)
    colors[foreground] = ((points - low) / (high - low).clamp(min=1e-12)).float()
    return colors.movedim(-1, 1)


def tsne_2d(
    features: Tensor,
    *,
    perplexity: float = 30.0,
    step_done: Callable[[], object] = lambda: None,
    steps: int = NUM_STEPS,
) -> Tensor:
    """Compute the exact t-SNE of features [N, D]: float32 [N, 2], for N up to LARGEST_TSNE.

    It starts from the principal components and is therefore deterministic. Source: van der Maaten & Hinton 2008, with
    early exaggeration, momentum and gains; learning rate N / 12 (Belkina et al. 2019).
    """
    num = len(features)
    likely = _joint(features, min(perplexity, (num - 1) / 3))
    y = pca(features)[0].float()
    y = y / y[:, 0].std().clamp(min=1e-12) * 1e-4
    velocity, gains = torch.zeros_like(y), torch.ones_like(y)
    rate = max(num / _EXAGGERATION / 4, 50.0)
    for step in range(steps):
        early = step < _EARLY_STEPS
        gradient = _gradient(y, likely * _EXAGGERATION if early else likely)
        gains = torch.where(gradient.sign() == velocity.sign(), gains * 0.8, gains + 0.2).clamp(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
        step_done()
    return y - y.mean(0)


def _gradient(y: Tensor, likely: Tensor) -> Tensor:
    near = 1 / (1 + torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square_())
    near.fill_diagonal_(0)
    weights = (likely - near / near.sum()).mul_(near)
    return 4 * (weights.sum(1, keepdim=True) * y - weights @ y)


def _joint(features: Tensor, perplexity: float) -> Tensor:
    """Return the joint probabilities of neighbors, [N, N] of sum 1, with Gaussian widths fitted to the perplexity."""
    squared = torch.cdist(features.double(), features.double()).square()
    squared /= squared.mean().clamp(min=1e-300)
    squared.fill_diagonal_(torch.inf)  # no row is its own neighbor
    target, num = math.log(perplexity), len(features)
    sharpness = torch.ones(num, 1, dtype=torch.float64)
    low, high = torch.zeros_like(sharpness), torch.full_like(sharpness, torch.inf)
    for _ in range(_HALVINGS):
        p = (-sharpness * squared).softmax(1)
        flat = -torch.special.xlogy(p, p).sum(1, keepdim=True) > target
        low, high = torch.where(flat, sharpness, low), torch.where(flat, high, sharpness)
        sharpness = torch.where(high.isinf(), sharpness * 2, (low + high) / 2)
    p = (-sharpness * squared).softmax(1)
    return ((p + p.T) / (2 * num)).float()
