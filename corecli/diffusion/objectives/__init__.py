"""What a diffusion network learns, one file per objective; the folder is the registry.

An objective's file defines `SAMPLER`, the default sampler; optionally `DIFFUSERS`, the prediction type of diffusers'
schedulers, without which generators are not exported; and `build`, a class that implements `parts.objective.Objective`
and whose parameters are the options it takes: any of `schedule`, `diffusion_steps`, `min_snr` and `flow_times`.
"""

from __future__ import annotations

from corecli.base import registry

FOLDER = "diffusion/objectives"


def default_sampler(objective: str) -> str:
    """Return the name of an objective's default sampler."""
    return registry.constants(FOLDER, objective)["SAMPLER"]
