"""Tables of the forward process in float64, and noise that depends on the image and not on its batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from corecli.base.errors import UsageError
from corecli.diffusion import schedules

MAX_BETA = 0.999
DrawNoise = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseTables:
    """Coefficients of the forward process and its posterior for each timestep, float64 [T] (DDPM, Eq. 4 and 7).

    q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar), and q(x_t-1 | x_t, x_0) = N(posterior_mean_x0 x_0 +
    posterior_mean_xt x_t, exp(posterior_log_variance)). The posterior at t = 0 has variance 0; its log variance is
    replaced by the one at t = 1, as in improved-diffusion.
    """

    betas: torch.Tensor
    alpha_bar: torch.Tensor
    posterior_mean_x0: torch.Tensor
    posterior_mean_xt: torch.Tensor
    posterior_log_variance: torch.Tensor

    def __len__(self) -> int:
        return len(self.betas)

    def alpha_bar_at(self, t: int) -> float:
        """Return alpha_bar at timestep t; it is 1, the clean image, at t = -1."""
        return self.alpha_bar[t].item() if t >= 0 else 1.0


@cache
def noise_tables(schedule: str, num_timesteps: int, device: torch.device | None = None) -> NoiseTables:
    """Return the tables of a schedule on a device (the CPU if None); each is computed once.

    Errors: UsageError if the schedule is unknown or there are fewer than 2 timesteps.
    """
    module = schedules.load(schedule)
    if num_timesteps < 2:
        raise UsageError(f"a diffusion process needs at least 2 steps, got {num_timesteps}", hint="use 1000")
    with torch.device("cpu"):  # also where a network is built without memory for its weights
        tables = _tables(module, num_timesteps)
    return NoiseTables(**{name: table.to(device) for name, table in tables.items()})


def image_noise(seeds: list[int], shape: tuple[int, ...], device: torch.device | None = None) -> DrawNoise:
    """Return a function that draws the next standard normal noise, [B, *shape], for B images.

    Row i comes from a generator of its own, seeded with seeds[i], so an image does not depend on its batch or process.
    Noise is drawn on the CPU, so that all devices agree.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def _tables(module: ModuleType, num_timesteps: int) -> dict[str, torch.Tensor]:
    betas = module.betas(num_timesteps).clamp(max=MAX_BETA)
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    variance = betas * (1 - previous) / (1 - alpha_bar)
    return {
        "betas": betas,
        "alpha_bar": alpha_bar,
        "posterior_mean_x0": betas * previous.sqrt() / (1 - alpha_bar),
        "posterior_mean_xt": (1 - betas).sqrt() * (1 - previous) / (1 - alpha_bar),
        "posterior_log_variance": torch.cat([variance[1:2], variance[1:]]).log(),
    }
