"""Noise levels: the one description of a noising process that objectives give and samplers walk down."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import torch

from corecli.base.errors import UsageError, unknown_name

Value = TypeVar("Value", float, torch.Tensor)


class Level(NamedTuple, Generic[Value]):
    """x = alpha x0 + sigma noise; the network sees scale x and is told t.

    Floats where a sampler stops, the same for a whole batch; in training tensors [B, 1, 1, 1], and t [B].
    """

    alpha: Value
    sigma: Value
    t: Value
    scale: Value


CLEAN = Level(alpha=1.0, sigma=0.0, t=-1.0, scale=1.0)  # where every sampler ends; no network is asked there


def noise_ratio(level: Level[float]) -> float:
    """sigma / alpha, which is EDM's sigma for every process; infinite where there is nothing but noise."""
    return level.sigma / level.alpha if level.alpha > 0 else math.inf


def pairs(levels: list[Level[float]]) -> Iterator[tuple[Level[float], Level[float]]]:
    """Every (level, next level) of a descending list; the last pair ends at the clean image."""
    return zip(levels, [*levels[1:], CLEAN], strict=True)


def check_spacing(spacing: str, known: tuple[str, ...], objective: str) -> None:
    """Errors: UsageError unless the objective's levels can be spaced so."""
    if spacing not in known:
        raise unknown_name(f"spacing of the {objective} objective's levels", spacing, known)


def check_steps(steps: int, most: int | None = None) -> None:
    """Errors: UsageError for less than one step, or more than a model has."""
    if steps < 1 or (most is not None and steps > most):
        model = "a model" if most is None else f"a model with {most}"
        hint = "use 1 or more" if most is None else "use 1 up to that many"
        raise UsageError(f"{steps} sampling steps asked of {model}", hint=hint)


def column(values: torch.Tensor) -> torch.Tensor:
    """[B] of any type as float32 [B, 1, 1, 1]; the one place where float64 tables are cast."""
    return values.float()[:, None, None, None]
