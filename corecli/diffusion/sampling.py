"""Run a sampler: choose its noise levels, start from noise, and give it the denoiser in the form it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from corecli.base import registry
from corecli.diffusion import samplers
from corecli.diffusion.guidance import Predict
from corecli.diffusion.levels import Level, noise_ratio
from corecli.diffusion.noise import DrawNoise
from corecli.diffusion.objectives.parts.objective import Objective

Denoise = Callable[[torch.Tensor, float], torch.Tensor]


def levels_of(
    sampler: str, objective: Objective, *, steps: int | None = None, spacing: str | None = None
) -> list[Level[float]]:
    """Return the noise levels that a sampler visits, the noisiest first.

    By default the number of steps is the sampler's, and the spacing the objective's or else the sampler's.
    Errors: UsageError if the objective has no such levels.
    """
    module = registry.load(samplers.FOLDER, sampler)
    default = min(module.DEFAULT_STEPS, objective.max_steps or module.DEFAULT_STEPS)
    return objective.levels(spacing or objective.spacing or module.SPACING, default if steps is None else steps)


def run(
    sampler: str,
    predict: Predict,
    objective: Objective,
    *,
    levels: list[Level[float]],
    draw_noise: DrawNoise,
    options: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Sample images [B, C, H, W] with the named sampler, and values for some of its options.

    Sampling starts from the first noise drawn. Errors: UsageError.
    """
    samplers.check_options(sampler, options or {})
    module = registry.load(samplers.FOLDER, sampler)
    chosen = {"options": module.Options(**(options or {}))} if hasattr(module, "Options") else {}
    x = objective.start(draw_noise(), levels[0])
    if hasattr(module, "sample_levels"):
        return module.sample_levels(predict, x, levels=levels, draw_noise=draw_noise, **chosen)
    denoise, sigmas = free_denoiser(predict, objective, levels), [*map(noise_ratio, levels), 0.0]
    if math.isinf(sigmas[0]):  # a step of Euler's method leaves pure noise, where x / alpha is infinite
        x = predict(x, levels[0]).x0 + sigmas[1] * x
        sigmas = sigmas[1:]
    else:
        x = x / levels[0].alpha
    return module.sample(denoise, x, sigmas=sigmas, draw_noise=draw_noise, **chosen)


def free_denoiser(predict: Predict, objective: Objective, levels: list[Level[float]]) -> Denoise:
    """Return denoise(x, sigma) -> x0 for x = x0 + sigma noise at any sigma, whatever the process.

    A sigma of `levels` is mapped to its level exactly; the objective's `level_at` maps others.
    """
    known = {noise_ratio(level): level for level in levels}

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        level = known.get(sigma) or objective.level_at(sigma)
        return predict(level.alpha * x, level).x0

    return denoise
