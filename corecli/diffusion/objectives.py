"""Training objectives of noise-predicting diffusion models, in float32, and the draws they need."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from corecli.base.rng import derive, torch_generator
from corecli.diffusion.guidance import split
from corecli.diffusion.noise import NoiseTables

VLB_WEIGHT = 0.001  # lambda of L_hybrid = L_simple + lambda L_vlb (IDDPM, section 3.1)
PIXEL_BIN = 1 / 255  # half the width of a pixel's bin on [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random part of a training step for B images; `draws[a:b]` is the part of some of them.

    t: [B] int64; noise: [B, C, H, W]; flip: [B] bool; drop: [B] uniform in [0, 1), to compare with a probability;
    condition_noise: [B, D], or [B, 0] where not wanted; seed: for what the network draws itself, its dropout, which
    is the one thing that differs with the number of ranks.
    """

    t: torch.Tensor
    noise: torch.Tensor
    flip: torch.Tensor
    drop: torch.Tensor
    condition_noise: torch.Tensor
    seed: int

    def __getitem__(self, rows: slice) -> Draws:
        seed = derive(self.seed, rows.start or 0)
        return Draws(**{name: tensor[rows] for name, tensor in self._tensors()}, seed=seed)

    def to(self, device: torch.device) -> Draws:
        """The same draws on a device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors()}
        return Draws(**moved, seed=self.seed)

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "seed"]


def draw(
    seed: int, step: int, *, batch: int, shape: tuple[int, int, int], num_timesteps: int, condition_dim: int = 0
) -> Draws:
    """The draws of a global batch, on the CPU, as a function of (seed, step) alone; slice them by rank."""
    generator = torch_generator(seed, "diffusion", step)
    return Draws(
        t=torch.randint(num_timesteps, (batch,), generator=generator),
        noise=torch.randn(batch, *shape, generator=generator),
        flip=torch.rand(batch, generator=generator) < 0.5,
        drop=torch.rand(batch, generator=generator),
        condition_noise=torch.randn(batch, condition_dim, generator=generator),
        seed=derive(seed, "network", step),
    )


def q_sample(tables: NoiseTables, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x_t ~ q(x_t | x_0), [B, C, H, W] (DDPM, Eq. 4)."""
    alpha_bar = tables.alpha_bar[t]
    return _at(alpha_bar.sqrt()) * x0 + _at((1 - alpha_bar).sqrt()) * noise


def simple_loss(eps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """L_simple: the mean squared error of the predicted noise (DDPM, Eq. 14)."""
    return F.mse_loss(eps.float(), noise)


def hybrid_loss(
    tables: NoiseTables,
    output: torch.Tensor,
    *,
    x0: torch.Tensor,
    x_t: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """L_simple + 0.001 L_vlb, in which L_vlb teaches the variance alone (IDDPM, Eq. 16).

    output: [B, 2C, H, W], eps and v. L_vlb is the sum of T terms, estimated by T times the term of the drawn t; so
    at T = 1000 a term has weight 1, as in guided-diffusion.
    """
    eps, v = split(output.float(), x0.shape[1])
    assert v is not None, "the hybrid loss needs a learned variance"
    terms = vlb_term(tables, eps.detach(), v, x0=x0, x_t=x_t, t=t)
    return simple_loss(eps, noise) + VLB_WEIGHT * len(tables) * terms.mean()


def vlb_term(
    tables: NoiseTables, eps: torch.Tensor, v: torch.Tensor, *, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """L_t of the variational bound in bits per dimension, [B]: a KL, or at t = 0 the decoder's NLL (IDDPM, Eq. 3-7)."""
    alpha_bar = tables.alpha_bar[t]
    predicted_x0 = (x_t - _at((1 - alpha_bar).sqrt()) * eps) / _at(alpha_bar.sqrt())
    mean = _posterior_mean(tables, predicted_x0, x_t, t)
    log_variance = learned_log_variance(v, low=_at(tables.posterior_log_variance[t]), high=_at(tables.betas[t].log()))
    kl = _gaussian_kl(_posterior_mean(tables, x0, x_t, t), _at(tables.posterior_log_variance[t]), mean, log_variance)
    nll = _decoder_nll(x0, mean, log_variance)
    return torch.where(_at(t) == 0, nll, kl).flatten(1).mean(dim=1) / math.log(2)


def learned_log_variance(v: torch.Tensor, *, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    """The interpolation of log variances that v in [-1, 1] stands for (IDDPM, Eq. 15)."""
    fraction = (v + 1) / 2
    return fraction * high + (1 - fraction) * low


def _posterior_mean(tables: NoiseTables, x0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return _at(tables.posterior_mean_x0[t]) * x0 + _at(tables.posterior_mean_xt[t]) * x_t


def _gaussian_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    difference = log_variance1 - log_variance2
    return 0.5 * (difference.exp() - 1 - difference + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def _decoder_nll(x0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """-log of a Gaussian's mass in the pixel's bin, in nats; the bins at -1 and 1 are open (DDPM, Eq. 13)."""
    inverse_std = torch.exp(-0.5 * log_variance)
    distance = x0 - mean
    # By symmetry both ends of the bin are taken in the lower tail, where float32 keeps the difference.
    lower = -distance.abs()
    inside = torch.special.ndtr((lower + PIXEL_BIN) * inverse_std) - torch.special.ndtr(
        (lower - PIXEL_BIN) * inverse_std
    )
    black = torch.special.ndtr((distance + PIXEL_BIN) * inverse_std)
    white = torch.special.ndtr((PIXEL_BIN - distance) * inverse_std)
    mass = torch.where(x0 < -0.999, black, torch.where(x0 > 0.999, white, inside))
    return -mass.clamp(min=1e-12).log()


def _at(values: torch.Tensor) -> torch.Tensor:
    """[B] of any type as float32 [B, 1, 1, 1]; the one place where float64 tables are cast."""
    return values.float()[:, None, None, None]
