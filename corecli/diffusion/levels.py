"""Noise levels: how objectives describe a noising process, and what samplers step through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import torch

from corecli.base.errors import UsageError, unknown_name

Value = TypeVar("Value", float, torch.Tensor)


class Level(NamedTuple, Generic[Value]):
    """One noise level: x = alpha x0 + sigma noise; the network sees scale x at time t.

    Values are floats in sampling, the same for a whole batch. In training they are tensors [B, 1, 1, 1], and t is [B].
    """

    alpha: Value
    sigma: Value
    t: Value
    scale: Value


CLEAN = Level(alpha=1.0, sigma=0.0, t=-1.0, scale=1.0)  # the last level of every sampler; the network is not run there


def noise_ratio(level: Level[float]) -> float:
    """Return sigma / alpha, which is EDM's sigma for every process; it is infinite for pure noise."""
    return level.sigma / level.alpha if level.alpha > 0 else math.inf


def pairs(levels: list[Level[float]]) -> Iterator[tuple[Level[float], Level[float]]]:
    """Yield every (level, next level) of a descending list; the last pair ends at the clean image."""
    return zip(levels, [*levels[1:], CLEAN], strict=True)


def check_spacing(spacing: str, known: tuple[str, ...], objective: str) -> None:
    """Check that an objective knows a spacing of levels. Errors: UsageError if not."""
    if spacing not in known:
        raise unknown_name(f"spacing for the {objective} objective", spacing, known)


def check_steps(steps: int, most: int | None = None) -> None:
    """Check a number of sampling steps. Errors: UsageError if it is below 1, or above `most`."""
    if steps < 1:
        raise UsageError(f"{steps} sampling steps are too few", hint="use 1 or more")
    if most is not None and steps > most:
        raise UsageError(f"{steps} sampling steps are more than the model's {most} timesteps", hint=f"use up to {most}")


def column(values: torch.Tensor) -> torch.Tensor:
    """Return [B] of any type as float32 [B, 1, 1, 1]; float64 tables are cast here and nowhere else."""
    return values.float()[:, None, None, None]
