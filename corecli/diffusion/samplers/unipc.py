"""UniPC (Zhao et al. 2023), order 2 with B2(h), through diffusers."""

from __future__ import annotations

import math

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, noise_ratio
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.samplers.parts.refusals import refuse_eta

DEFAULT_STEPS = 20
SPACING = "log-snr"


def sample(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], eta: float, draw_noise: DrawNoise
) -> torch.Tensor:
    """Images [B, C, H, W] from x at the first level. Errors: UsageError for an eta, or levels without a log-SNR."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    refuse_eta(eta, "unipc")
    ratios = [noise_ratio(level) for level in levels]
    if math.isinf(ratios[0]):
        raise UsageError("the unipc sampler cannot begin at nothing but noise, as flow does", hint="use dpmpp or heun")
    scheduler = UniPCMultistepScheduler(prediction_type="sample", solver_order=2, solver_type="bh2")
    # It takes no list of levels, and its own has duplicates near N = T, which give NaN; so ours replaces it.
    scheduler.set_timesteps(len(levels))
    scheduler.timesteps = torch.arange(len(levels), 0, -1)
    scheduler.sigmas = torch.tensor([*ratios, 0.0])
    scheduler.set_begin_index(0)
    x = x / _norm(levels[0])  # it knows the variance-preserving process alone
    for level, t in zip(levels, scheduler.timesteps, strict=True):
        x = scheduler.step(predict(x * _norm(level), level).x0, t, x, return_dict=False)[0]
    return x


def _norm(level: Level[float]) -> float:
    return math.hypot(level.alpha, level.sigma)
