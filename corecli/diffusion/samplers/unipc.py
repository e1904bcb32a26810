"""UniPC (Zhao et al. 2023), order 2 with B2(h), through diffusers, on timesteps even in log-SNR."""

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
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    refuse_eta(eta, "unipc")
    scheduler = UniPCMultistepScheduler(
        num_train_timesteps=len(tables),
        trained_betas=tables.betas.tolist(),
        prediction_type="sample",
        solver_order=2,
        solver_type="bh2",
    )
    # It takes no list of timesteps, and its own has duplicates near N = T, which give NaN; so ours replaces it.
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.tensor(log_snr(tables, steps))
    alpha_bar = tables.alpha_bar[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), torch.zeros(1)]).float()
    return solve(scheduler, predict, x_T)
