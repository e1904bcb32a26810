"""Samplers, one file per sampler; the folder is the registry.

A sampler's file defines `DEFAULT_STEPS` and `SPACING` (of the objectives eps, v and x0). It may define `Options`, a
frozen dataclass of numbers that --set changes; `BOUNDS`, their lowest and highest values (None for no bound); and
`DIFFUSERS`, the scheduler of diffusers that pipelines use under the sampler's name. It defines one function:

    def sample(denoise, x, *, sigmas, draw_noise, options): ...

It returns images [B, C, H, W]. `denoise(x, sigma)` estimates the clean image for x = x0 + sigma noise, at any sigma
above 0: the network's own process, its timesteps and its scale are hidden. x is at sigmas[0]; the finite `sigmas`
descend and end with 0. `draw_noise()` returns standard normal noise in the shape of x. It is a function of each image's
seed and of the number of earlier calls, so a sampler has to make the same calls for every batch. `options` is passed if
the file defines `Options`.

A sampler that needs more (the learned variance, timesteps, or the process's own alpha and sigma) defines instead

    def sample_levels(predict, x, *, levels, draw_noise, options): ...

where `predict(x, level)` returns (x0, v) for x = alpha x0 + sigma noise, and `levels` are the levels to visit. It can
visit no others.
"""

from __future__ import annotations

from collections.abc import Mapping

from corecli.base import registry
from corecli.base.errors import UsageError, unknown_name

FOLDER = "diffusion/samplers"


def check_options(sampler: str, values: Mapping[str, float]) -> None:
    """Check values for a sampler's options. Errors: UsageError if an option is unknown or a value is out of bounds."""
    constants = registry.constants(FOLDER, sampler)
    for name, value in values.items():
        if name not in constants["Options"]:
            raise unknown_name(f"option of {sampler}", name, constants["Options"])
        low, high = constants.get("BOUNDS", {}).get(name, (None, None))
        if low is not None and not value >= low:
            raise UsageError(f"{name} {value:g} is too small for {sampler}", hint=f"use {low:g} or more")
        if high is not None and not value <= high:
            raise UsageError(f"{name} {value:g} is too large for {sampler}", hint=f"use {high:g} or less")


def scheduler_of(sampler: str) -> str:
    """Return the class name of diffusers' scheduler for a sampler. Errors: UsageError if there is none."""
    found = registry.constants(FOLDER, sampler).get("DIFFUSERS")
    if found is None:
        known = [name for name in registry.choices(FOLDER) if "DIFFUSERS" in registry.constants(FOLDER, name)]
        raise UsageError(f"diffusers has no scheduler for the {sampler} sampler", hint=f"use {', '.join(known)}")
    return found
