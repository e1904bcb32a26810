"""Betas grow as the cube of time."""

from __future__ import annotations

import torch


def betas(num_timesteps: int) -> torch.Tensor:
    return (1 + 39 * torch.linspace(0, 1, num_timesteps, dtype=torch.float64) ** 3) / num_timesteps
