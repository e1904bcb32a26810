"""The options of samplers: from the command line to values, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import make_dataclass
from typing import Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.diffusion.samplers import FOLDER, check_options

OBJECTIVES = "diffusion/objectives"


def default_sampler(objective: str) -> str:
    """Return the sampler that an objective uses by default."""
    return registry.constants(OBJECTIVES, objective)["SAMPLER"]


def sampler_options(sampler: str, items: Iterable[str], eta: float) -> dict[str, Any]:
    """Return values for a sampler's options, from the NAME=VALUE items of --set and from --eta.

    Errors: UsageError if an option is unknown, its value is wrong, or --eta does not apply.
    """
    defaults = registry.constants(FOLDER, sampler)["Options"]
    kind = make_dataclass("Options", [(name, type(default)) for name, default in defaults.items()])
    values = cfg.parse_fields(kind, cfg.named_values(items), where=sampler)
    if eta:
        if defaults.get("eta") != 0:
            hint = "use --set eta=VALUE" if "eta" in defaults else "--eta applies to ddim"
            raise UsageError(f"the {sampler} sampler takes no --eta", hint=hint)
        if "eta" in values:
            raise UsageError("--eta and --set eta= set the same option", hint="give one of them")
        values["eta"] = eta
    check_options(sampler, values)
    return values
