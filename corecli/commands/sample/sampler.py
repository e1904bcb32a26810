"""How to sample with a trained generator: the options of the command line as values, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, make_dataclass
from typing import Any

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import UsageError
from corecli.diffusion.objectives import default_sampler
from corecli.diffusion.samplers import FOLDER, check_options


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choices of sampling; None means the default of the generator or of the sampler.

    eta, items: values of --eta and --set for the sampler's own options; guidance: 1 for none.
    """

    sampler: str | None
    steps: int | None
    eta: float
    items: tuple[str, ...]
    spacing: str | None
    guidance: float
    guidance_interval: tuple[float, ...] | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return the ends of the guidance interval. Errors: UsageError unless there are two."""
        if self.guidance_interval is None:
            return None
        if len(self.guidance_interval) != 2:
            raise UsageError("--guidance-interval takes two noise levels", hint="write 0.19,1.61")
        return self.guidance_interval

    def sampler_for(self, generator: dict[str, Any]) -> str | None:
        """Return the sampler for a generator with these fields; None if it has no objective, as a GAN."""
        objective = generator.get("objective")
        return self.sampler or (default_sampler(objective) if objective else None)

    def options_for(self, sampler: str) -> dict[str, Any]:
        """Return values for the sampler's options. Errors: UsageError if one is unknown or wrong."""
        return sampler_options(sampler, self.items, self.eta)


def sampler_options(sampler: str, items: Iterable[str], eta: float) -> dict[str, Any]:
    """Return values for a sampler's options, from the NAME=VALUE items of --set and from --eta.

    Errors: UsageError if an option is unknown, its value is wrong, or --eta does not apply.
    """
    defaults = registry.constants(FOLDER, sampler)["Options"]
    kind = make_dataclass("Options", [(name, type(default)) for name, default in defaults.items()])
    values = cfg.parse_fields(kind, cfg.named_values(items), where=sampler)
    if eta:
        if defaults.get("eta") != 0:
            hint = "use --set eta=VALUE" if "eta" in defaults else f"--eta applies to {' and '.join(_taking_eta())}"
            raise UsageError(f"the {sampler} sampler takes no --eta", hint=hint)
        if "eta" in values:
            raise UsageError("--eta and --set eta= set the same option", hint="give one of them")
        values["eta"] = eta
    check_options(sampler, values)
    return values


def _taking_eta() -> list[str]:
    """Return the samplers whose option eta is 0 by default, as that of --eta."""
    return [name for name in registry.choices(FOLDER) if registry.constants(FOLDER, name)["Options"].get("eta") == 0]
