"""What the samplers share: the refusal of a useless eta, and the loop around a scheduler of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from corecli.base.errors import UsageError
from corecli.diffusion.guidance import Predict


def solve(scheduler: Any, predict: Predict, x_T: torch.Tensor) -> torch.Tensor:
    """Run a scheduler of diffusers whose timesteps are set and whose prediction type is "sample"; returns the last x.

    The scheduler gets the estimate of x0, so clipping is ours and the same for every sampler.
    """
    scheduler.set_begin_index(0)
    x = x_T
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(predict(x, t).x0, t, x, return_dict=False)[0]
    return x


def refuse_eta(eta: float, sampler: str) -> None:
    """Refuse an eta where it would silently do nothing. Errors: UsageError."""
    if eta:
        raise UsageError(f"the {sampler} sampler takes no eta", hint="eta belongs to ddim")
