"""Square roots of betas grow linearly, betas from 0.0015 to 0.0195: "linear" in latent diffusion (LDM, Table 13)."""

from __future__ import annotations

import math

import torch

DIFFUSERS = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}


def betas(num_timesteps: int) -> torch.Tensor:
    """Return the betas, float64 [T]; they are scaled by 1000 / T."""
    scale = 1000 / num_timesteps
    ends = math.sqrt(scale * 0.0015), math.sqrt(scale * 0.0195)
    return torch.linspace(*ends, num_timesteps, dtype=torch.float64) ** 2
