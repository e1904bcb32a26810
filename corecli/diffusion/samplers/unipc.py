"""UniPC (Zhao et al. 2023) of order 2 with B2(h), computed by diffusers."""

from __future__ import annotations

import math

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, noise_ratio
from corecli.diffusion.noise import DrawNoise

DEFAULT_STEPS, SPACING = 20, "log-snr"
DIFFUSERS = "UniPCMultistepScheduler"


def sample_levels(
    predict: Predict, x: torch.Tensor, *, levels: list[Level[float]], draw_noise: DrawNoise
) -> torch.Tensor:
    """Return images [B, C, H, W] from x at the first level. Errors: UsageError if the levels start at pure noise."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    ratios = [noise_ratio(level) for level in levels]
    if math.isinf(ratios[0]):
        raise UsageError("the unipc sampler cannot start at pure noise, as flow does", hint="use dpmpp or heun")
    scheduler = UniPCMultistepScheduler(prediction_type="sample", solver_order=2, solver_type="bh2")
    # Its own levels repeat if N is near T, which gives NaN, and it takes no list; so its attributes are replaced.
    scheduler.set_timesteps(len(levels))
    scheduler.timesteps = torch.arange(len(levels), 0, -1)
    scheduler.sigmas = torch.tensor([*ratios, 0.0])
    scheduler.set_begin_index(0)
    x = x / _norm(levels[0])  # it only supports the variance-preserving process
    for level, t in zip(levels, scheduler.timesteps, strict=True):
        x = scheduler.step(predict(x * _norm(level), level).x0, t, x, return_dict=False)[0]
    return x


def _norm(level: Level[float]) -> float:
    return math.hypot(level.alpha, level.sigma)
