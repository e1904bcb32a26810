"""Spacings: the N distinct timesteps of T that a sampler visits, in descending order, for every N from 1 to T."""

from __future__ import annotations

import math

import torch

from corecli.diffusion.levels import check_steps
from corecli.diffusion.noise import NoiseTables

LAMBDA_MIN = -5.1  # log-SNR below which x is pure noise (DPM-Solver starts here on the cosine schedule)
RHO = 7  # larger values put more of EDM's levels near the clean image (EDM, Table 1)


def leading(tables: NoiseTables, steps: int) -> list[int]:
    """Return floor(i T / N), which is DDIM's strided list 0, s, 2s, ... where N divides T.

    The common way, to floor the stride itself, starts late: 64 steps of 1000 start at t = 945 instead of 984. A single
    step starts at T - 1, because at 0 the network would take the noise for an image.
    """
    check_steps(steps, len(tables))
    if steps == 1:
        return [len(tables) - 1]
    return [i * len(tables) // steps for i in reversed(range(steps))]


def inclusive(tables: NoiseTables, steps: int) -> list[int]:
    """Return N evenly spaced timesteps from T - 1 down to 0, rounded (IDDPM, section 4)."""
    check_steps(steps, len(tables))
    return torch.linspace(len(tables) - 1, 0, steps, dtype=torch.float64).round().long().tolist()


def log_snr(tables: NoiseTables, steps: int) -> list[int]:
    """Return the distinct timesteps nearest to N even values of lambda = log(alpha / sigma) (DPM-Solver, section 3.4).

    With an exact denoiser, the error of second-order solvers is 2 to 7 times smaller than with evenly spaced timesteps.
    """
    check_steps(steps, len(tables))
    lambdas = log_snrs(tables)
    first, last = lambdas[_start(lambdas)].item(), lambdas[0].item()
    return _nearest(lambdas, torch.linspace(first, last, steps, dtype=torch.float64))


def karras(tables: NoiseTables, steps: int) -> list[int]:
    """Return the distinct timesteps nearest to EDM's levels, even in (sigma / alpha)^(1/7) (EDM, Eq. 5)."""
    check_steps(steps, len(tables))
    lambdas = log_snrs(tables)
    highest, lowest = math.exp(-lambdas[_start(lambdas)].item()), math.exp(-lambdas[0].item())
    return _nearest(lambdas, -rho_levels(highest, lowest, steps).log())


def rho_levels(highest: float, lowest: float, steps: int) -> torch.Tensor:
    """Return N values from the highest to the lowest, float64, evenly spaced in their seventh root (EDM, Eq. 5)."""
    return torch.linspace(highest ** (1 / RHO), lowest ** (1 / RHO), steps, dtype=torch.float64) ** RHO


def log_snrs(tables: NoiseTables) -> torch.Tensor:
    """Return lambda = log(alpha / sigma) at each timestep, float64 [T], descending."""
    return (tables.alpha_bar.log() - torch.log1p(-tables.alpha_bar)) / 2


SPACINGS = {"even": leading, "inclusive": inclusive, "log-snr": log_snr, "karras": karras}


def _start(lambdas: torch.Tensor) -> int:
    """Return the last timestep that is not pure noise."""
    return int((lambdas >= max(LAMBDA_MIN, lambdas[-1].item())).sum()) - 1


def _nearest(lambdas: torch.Tensor, wanted: torch.Tensor) -> list[int]:
    """Return the distinct timesteps nearest to the given log-SNRs, which ascend."""
    nearest = (lambdas[None, :] - wanted.flip(0)[:, None]).abs().argmin(dim=1).tolist()
    chosen, lowest, room = [], 0, len(lambdas) - len(wanted)
    for i, t in enumerate(nearest):
        chosen.append(min(max(t, lowest), room + i))
        lowest = chosen[-1] + 1
    return chosen[::-1]
