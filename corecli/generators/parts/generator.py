"""The interface of generators, and generators from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from corecli.base import registry
from corecli.base.checkpoint import Header, Tensors
from corecli.diffusion.training import Draws


class Generator(Protocol):
    """A torch module that learns and makes images; `load("generators", name).build(config)` returns one.

    `config` is the family's frozen dataclass, with all values resolved. A checkpoint holds its fields and the
    state_dict of the module.
    """

    config: Any

    def check_condition(self, condition: torch.Tensor | None, *, guidance: float = 1.0) -> None:
        """Check conditions and guidance; call it once for a whole table.

        Errors: UsageError if a condition is missing or not accepted, or if guidance was not trained for; DataError if
        the shape, kind or values of conditions are wrong.
        """
        ...

    def draw(self, seed: int, step: int, *, batch: int) -> Draws:
        """Return the random numbers of a step's global batch, on the CPU, as a function of (seed, step)."""
        ...

    def loss(self, images: torch.Tensor, condition: torch.Tensor | None, draws: Draws) -> torch.Tensor:
        """Return the loss of uint8 images [B, 3, S, S], a float32 scalar; a pure function of weights and arguments."""
        ...

    def generate(
        self,
        seeds: list[int],
        condition: torch.Tensor | None = None,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        spacing: str | None = None,
        sampler_options: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """Return uint8 images [B, 3, S, S] on the generator's device; image i depends on seeds[i] and condition[i].

        Arguments that are None take the defaults of the generator.
        """
        ...


def build_saved(header: Header, tensors: Tensors) -> Any:
    """Return the generator of a loaded checkpoint, for sampling. Errors: UsageError for an unknown family."""
    family = registry.load("generators", header["arch"])
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in header["generator"].items()}
    generator = family.build(family.Config(**fields))
    generator.load_state_dict(tensors)
    return generator.eval()
