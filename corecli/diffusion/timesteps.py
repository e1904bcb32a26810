"""Which of the T trained timesteps a sampler visits: N distinct ones, descending, for every N from 1 to T."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.noise import NoiseTables

LAMBDA_MIN = -5.1  # below this log-SNR there is nothing but noise (DPM-Solver's start for the cosine schedule)


def leading(num_timesteps: int, steps: int) -> list[int]:
    """floor(i T / N): DDIM's strided list 0, s, 2s, ... where N divides T, and as even where it does not.

    Flooring the stride itself, as is common, starts late: 64 of 1000 at t = 945 in place of 984. A single step
    starts at T - 1, since 0 would take the noise for an image.
    """
    _check(num_timesteps, steps)
    if steps == 1:
        return [num_timesteps - 1]
    return [i * num_timesteps // steps for i in reversed(range(steps))]


def inclusive(num_timesteps: int, steps: int) -> list[int]:
    """N even timesteps from T - 1 down to 0, rounded (IDDPM, section 4)."""
    _check(num_timesteps, steps)
    return torch.linspace(num_timesteps - 1, 0, steps, dtype=torch.float64).round().long().tolist()


def log_snr(tables: NoiseTables, steps: int) -> list[int]:
    """The timesteps nearest to N even values of lambda = log(alpha / sigma), kept distinct (DPM-Solver, section 3.4).

    On an exact denoiser the second-order solvers come 2 to 7 times nearer to the ODE's solution with these than
    with even timesteps.
    """
    _check(len(tables), steps)
    lambdas = (tables.alpha_bar.log() - torch.log1p(-tables.alpha_bar)) / 2
    start = int((lambdas >= max(LAMBDA_MIN, lambdas[-1].item())).sum()) - 1
    wanted = torch.linspace(lambdas[start].item(), lambdas[0].item(), steps, dtype=torch.float64).flip(0)
    nearest = (lambdas[None, :] - wanted[:, None]).abs().argmin(dim=1).tolist()
    chosen, lowest, room = [], 0, len(tables) - steps
    for i, t in enumerate(nearest):
        chosen.append(min(max(t, lowest), room + i))
        lowest = chosen[-1] + 1
    return chosen[::-1]


def pairs(timesteps: list[int]) -> Iterator[tuple[int, int]]:
    """Every (t, next t) of a descending list; the last pair ends at -1, the clean image."""
    return zip(timesteps, [*timesteps[1:], -1], strict=True)


def _check(num_timesteps: int, steps: int) -> None:
    if not 1 <= steps <= num_timesteps:
        raise UsageError(f"{steps} sampling steps asked of a model with {num_timesteps}", hint="use 1 up to that many")
