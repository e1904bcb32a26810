"""A loss that makes features agree across views and differ from one another."""

from __future__ import annotations

import torch
from torch import Tensor

from corecli.engine.dist import current_rank, gather_with_gradient
from corecli.ssl.parts.losses import full_precision, widened

_EPS = 1e-5  # BatchNorm's, as in the authors' code


def barlow_twins(z0: Tensor, z1: Tensor, *, off_diagonal: float) -> Tensor:
    """sum_i (c_ii - 1)^2 + off_diagonal * sum_{i != j} c_ij^2 of two views, each [B, D] (Barlow Twins, Eq. 1).

    c is the correlation matrix of the global batch, whose mean and biased variance standardize the features; its rows
    are shared out among the ranks, every size-th to each.
    """
    with full_precision(z0):
        y0, y1 = (_standardized(gather_with_gradient(widened(z))) for z in (z0, z1))  # [B * size, D]
        size = len(y0) // len(z0)
        rows = torch.arange(current_rank(), y0.shape[1], size, device=y0.device)[:, None]
        c = y0[:, rows[:, 0]].T @ y1 / len(y0)  # [D / size, D]
        agreement = (c.gather(1, rows) - 1).square().sum()
        redundancy = c.scatter(1, rows, 0.0).square().sum()
        return size * (agreement + off_diagonal * redundancy)


def _standardized(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    return (x - mean) * torch.rsqrt(variance + _EPS)
