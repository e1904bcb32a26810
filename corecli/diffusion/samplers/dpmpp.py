"""DPM-Solver++ 2M (Lu et al. 2022, Algorithm 2) through diffusers, on timesteps even in log-SNR."""

from __future__ import annotations

import torch

from corecli.diffusion.guidance import Predict
from corecli.diffusion.noise import DrawNoise, NoiseTables
from corecli.diffusion.samplers._solver import refuse_eta, solve
from corecli.diffusion.timesteps import log_snr

DEFAULT_STEPS = 20


def sample(
    predict: Predict, x_T: torch.Tensor, *, tables: NoiseTables, steps: int, eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T of the same shape. Errors: UsageError for steps out of range or an eta."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    refuse_eta(eta, "dpmpp")
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(tables),
        trained_betas=tables.betas.tolist(),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
    )
    scheduler.set_timesteps(timesteps=log_snr(tables, steps))
    return solve(scheduler, predict, x_T)
