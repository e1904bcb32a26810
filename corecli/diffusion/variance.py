"""The learned variance of DDPM's reverse process, and its loss (Nichol and Dhariwal 2021)."""

from __future__ import annotations

import math

import torch

from corecli.diffusion.levels import column
from corecli.diffusion.noise import NoiseTables

VLB_WEIGHT = 0.001  # lambda of L_hybrid = L_simple + lambda L_vlb (IDDPM, section 3.1)
PIXEL_BIN = 1 / 255  # half the width of a pixel's bin on [-1, 1]


def variance_loss(
    tables: NoiseTables, eps: torch.Tensor, v: torch.Tensor, *, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """Return 0.001 L_vlb, the second part of L_hybrid (IDDPM, Eq. 16); give it eps without gradient.

    L_vlb is a sum of T terms, estimated by T times the term at the drawn t. At T = 1000 the weight of a term is 1, as
    in guided-diffusion.
    """
    return VLB_WEIGHT * len(tables) * vlb_term(tables, eps, v, x0=x0, x_t=x_t, t=t).mean()


def vlb_term(
    tables: NoiseTables, eps: torch.Tensor, v: torch.Tensor, *, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """Return L_t in bits per dimension, [B]: a KL divergence, or the decoder's NLL at t = 0 (IDDPM, Eq. 3-7)."""
    alpha_bar = tables.alpha_bar[t]
    predicted_x0 = (x_t - column((1 - alpha_bar).sqrt()) * eps) / column(alpha_bar.sqrt())
    mean = _posterior_mean(tables, predicted_x0, x_t, t)
    log_variance = learned_log_variance(
        v, low=column(tables.posterior_log_variance[t]), high=column(tables.betas[t].log())
    )
    kl = _gaussian_kl(_posterior_mean(tables, x0, x_t, t), column(tables.posterior_log_variance[t]), mean, log_variance)
    nll = _decoder_nll(x0, mean, log_variance)
    return torch.where(column(t) == 0, nll, kl).flatten(1).mean(dim=1) / math.log(2)


def learned_log_variance(v: torch.Tensor, *, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    """Interpolate between two log variances by v in [-1, 1] (IDDPM, Eq. 15)."""
    fraction = (v + 1) / 2
    return fraction * high + (1 - fraction) * low


def _posterior_mean(tables: NoiseTables, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return column(tables.posterior_mean_x0[t]) * x0 + column(tables.posterior_mean_xt[t]) * x_t


def _gaussian_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """Return KL(N1 || N2) in nats, elementwise."""
    difference = log_variance1 - log_variance2
    return 0.5 * (difference.exp() - 1 - difference + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def _decoder_nll(x0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return -log of a Gaussian's mass in each pixel's bin, in nats; the outer bins are open (DDPM, Eq. 13)."""
    inverse_std = torch.exp(-0.5 * log_variance)
    distance = x0 - mean
    # By symmetry, both ends of the bin are moved to the lower tail, where float32 keeps the difference.
    lower = -distance.abs()
    inside = torch.special.ndtr((lower + PIXEL_BIN) * inverse_std) - torch.special.ndtr(
        (lower - PIXEL_BIN) * inverse_std
    )
    black = torch.special.ndtr((distance + PIXEL_BIN) * inverse_std)
    white = torch.special.ndtr((PIXEL_BIN - distance) * inverse_std)
    mass = torch.where(x0 < -0.999, black, torch.where(x0 > 0.999, white, inside))
    return -mass.clamp(min=1e-12).log()
