"""The forward process: beta schedules as float64 tables, and noise that belongs to an image and not to its batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from corecli.base.errors import UsageError, unknown_name

MAX_BETA = 0.999
DrawNoise = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseTables:
    """Coefficients of the forward process and its posterior by timestep, each float64 [T] (DDPM, Eq. 4 and 7).

    q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar), and q(x_t-1 | x_t, x_0) = N(posterior_mean_x0 x_0 +
    posterior_mean_xt x_t, exp(posterior_log_variance)). The posterior of t = 0 has no variance; its logarithm is
    clipped to that of t = 1, as in improved-diffusion.
    """

    betas: torch.Tensor
    alpha_bar: torch.Tensor
    posterior_mean_x0: torch.Tensor
    posterior_mean_xt: torch.Tensor
    posterior_log_variance: torch.Tensor

    def __len__(self) -> int:
        return len(self.betas)

    def alpha_bar_at(self, t: int) -> float:
        """alpha_bar of timestep t, and 1, the clean image, for t = -1."""
        return self.alpha_bar[t].item() if t >= 0 else 1.0


@cache
def noise_tables(schedule: str, num_timesteps: int, device: torch.device | None = None) -> NoiseTables:
    """The tables of a schedule in `SCHEDULES`, made once for each device (the CPU when None).

    Errors: UsageError for an unknown schedule or fewer than 2 timesteps.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    if num_timesteps < 2:
        raise UsageError(f"a diffusion of {num_timesteps} steps has no noise levels", hint="use 2 or more, say 1000")
    betas = SCHEDULES[schedule](num_timesteps).clamp(max=MAX_BETA)
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    variance = betas * (1 - previous) / (1 - alpha_bar)
    tables = {
        "betas": betas,
        "alpha_bar": alpha_bar,
        "posterior_mean_x0": betas * previous.sqrt() / (1 - alpha_bar),
        "posterior_mean_xt": (1 - betas).sqrt() * (1 - previous) / (1 - alpha_bar),
        "posterior_log_variance": torch.cat([variance[1:2], variance[1:]]).log(),
    }
    return NoiseTables(**{name: table.to(device) for name, table in tables.items()})


def linear(num_timesteps: int) -> torch.Tensor:
    """1e-4 to 0.02 for 1000 timesteps (DDPM, section 4), scaled by 1000 / T for others, as in guided-diffusion."""
    scale = 1000 / num_timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)


def scaled_linear(num_timesteps: int) -> torch.Tensor:
    """Linear in sqrt(beta), 0.0015 to 0.0195 for 1000 timesteps: what latent diffusion calls linear (LDM, Table 13)."""
    scale = 1000 / num_timesteps
    ends = math.sqrt(scale * 0.0015), math.sqrt(scale * 0.0195)
    return torch.linspace(*ends, num_timesteps, dtype=torch.float64) ** 2


def cosine(num_timesteps: int) -> torch.Tensor:
    """alpha_bar falls as a squared cosine, s = 0.008 (IDDPM, Eq. 17)."""
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return 1 - alpha_bar[1:] / alpha_bar[:-1]


SCHEDULES = {"linear": linear, "cosine": cosine, "scaled_linear": scaled_linear}


def image_noise(seeds: list[int], shape: tuple[int, ...], device: torch.device | None = None) -> DrawNoise:
    """A function that draws the next standard normal [B, *shape], row i from a generator of its own, seeded seeds[i].

    So an image does not depend on the batch or the process it is made in. Drawn on the CPU, so devices agree.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
