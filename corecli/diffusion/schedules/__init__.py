"""Noise schedules of the variance-preserving process, one file per schedule; the folder is the registry.

A schedule's file defines `betas(num_timesteps)`, float64 [T], and optionally `DIFFUSERS`: the settings of a diffusers
scheduler with the same betas at 1000 timesteps. Without it, exported generators list their betas. A schedule is named
as its file, with underscores.
"""

from __future__ import annotations

from types import ModuleType

from corecli.base import registry
from corecli.base.errors import unknown_name

FOLDER = "diffusion/schedules"


def names() -> tuple[str, ...]:
    """Return the names of all schedules, such as `scaled_linear`."""
    return tuple(name.replace("-", "_") for name in registry.choices(FOLDER))


def load(name: str) -> ModuleType:
    """Import a schedule. Errors: UsageError if its name is unknown."""
    if name not in names():
        raise unknown_name("schedule", name, names())
    return registry.load(FOLDER, name.replace("_", "-"))
