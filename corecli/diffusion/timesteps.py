"""Which of the T trained timesteps a sampler visits: N distinct ones, descending, for every N from 1 to T."""

from __future__ import annotations

import math

import torch

from corecli.diffusion.levels import check_steps
from corecli.diffusion.noise import NoiseTables

LAMBDA_MIN = -5.1  # below this log-SNR there is nothing but noise (DPM-Solver's start for the cosine schedule)
RHO = 7  # how much EDM's levels crowd near the clean image (EDM, Table 1)


def leading(tables: NoiseTables, steps: int) -> list[int]:
    """floor(i T / N): DDIM's strided list 0, s, 2s, ... where N divides T, and as even where it does not.

    Flooring the stride itself, as is common, starts late: 64 of 1000 at t = 945 in place of 984. A single step
    starts at T - 1, since 0 would take the noise for an image.
    """
    check_steps(steps, len(tables))
    if steps == 1:
        return [len(tables) - 1]
    return [i * len(tables) // steps for i in reversed(range(steps))]


def inclusive(tables: NoiseTables, steps: int) -> list[int]:
    """N even timesteps from T - 1 down to 0, rounded (IDDPM, section 4)."""
    check_steps(steps, len(tables))
    return torch.linspace(len(tables) - 1, 0, steps, dtype=torch.float64).round().long().tolist()


def log_snr(tables: NoiseTables, steps: int) -> list[int]:
    """The timesteps nearest to N even values of lambda = log(alpha / sigma), kept distinct (DPM-Solver, section 3.4).

    On an exact denoiser the second-order solvers come 2 to 7 times nearer to the ODE's solution with these than
    with even timesteps.
    """
    check_steps(steps, len(tables))
    lambdas = _lambdas(tables)
    first, last = lambdas[_start(lambdas)].item(), lambdas[0].item()
    return _nearest(lambdas, torch.linspace(first, last, steps, dtype=torch.float64))


def karras(tables: NoiseTables, steps: int) -> list[int]:
    """The timesteps nearest to EDM's levels, even in (sigma / alpha)^(1/7), kept distinct (EDM, Eq. 5)."""
    check_steps(steps, len(tables))
    lambdas = _lambdas(tables)
    highest, lowest = math.exp(-lambdas[_start(lambdas)].item()), math.exp(-lambdas[0].item())
    return _nearest(lambdas, -rho_levels(highest, lowest, steps).log())


def rho_levels(highest: float, lowest: float, steps: int) -> torch.Tensor:
    """N values from the highest to the lowest, even in their seventh root, float64 (EDM, Eq. 5)."""
    return torch.linspace(highest ** (1 / RHO), lowest ** (1 / RHO), steps, dtype=torch.float64) ** RHO


SPACINGS = {"even": leading, "inclusive": inclusive, "log-snr": log_snr, "karras": karras}


def _lambdas(tables: NoiseTables) -> torch.Tensor:
    return (tables.alpha_bar.log() - torch.log1p(-tables.alpha_bar)) / 2


def _start(lambdas: torch.Tensor) -> int:
    """The last timestep that is more than noise."""
    return int((lambdas >= max(LAMBDA_MIN, lambdas[-1].item())).sum()) - 1


def _nearest(lambdas: torch.Tensor, wanted: torch.Tensor) -> list[int]:
    """The timesteps nearest to log-SNRs in ascending order, kept distinct."""
    nearest = (lambdas[None, :] - wanted.flip(0)[:, None]).abs().argmin(dim=1).tolist()
    chosen, lowest, room = [], 0, len(lambdas) - len(wanted)
    for i, t in enumerate(nearest):
        chosen.append(min(max(t, lowest), room + i))
        lowest = chosen[-1] + 1
    return chosen[::-1]
