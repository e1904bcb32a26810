"""The signal's share alpha_bar falls as a squared cosine with offset 0.008 (IDDPM, Eq. 17)."""

from __future__ import annotations

import math

import torch

DIFFUSERS = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02}  # which ignores the two betas


def betas(num_timesteps: int) -> torch.Tensor:
    """Return the betas, float64 [T]."""
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return 1 - alpha_bar[1:] / alpha_bar[:-1]
