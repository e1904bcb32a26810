"""Betas grow linearly from 1e-4 to 0.02 (DDPM, section 4)."""

from __future__ import annotations

import torch

DIFFUSERS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def betas(num_timesteps: int) -> torch.Tensor:
    """Return the betas, float64 [T]; they are scaled by 1000 / T, as in guided-diffusion."""
    scale = 1000 / num_timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)
