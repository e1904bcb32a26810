"""The posterior q(x_b | x_a, x0) at a less noisy level b, on any process (DDPM, Eq. 7; VDM, Eq. 32)."""

from __future__ import annotations

from typing import NamedTuple

from corecli.diffusion.levels import Level


class Posterior(NamedTuple):
    """N(mean_x0 x0 + mean_x x_a, variance).

    forward: the variance of the forward step from b to a, which is DDPM's beta for neighboring timesteps.
    """

    mean_x0: float
    mean_x: float
    variance: float
    forward: float


def posterior(a: Level[float], b: Level[float]) -> Posterior:
    """Return the posterior of a step from level a down to level b."""
    shrink = a.alpha / b.alpha
    forward = a.sigma**2 - (shrink * b.sigma) ** 2
    kept = (b.sigma / a.sigma) ** 2
    return Posterior(
        mean_x0=b.alpha * forward / a.sigma**2, mean_x=shrink * kept, variance=kept * forward, forward=forward
    )
