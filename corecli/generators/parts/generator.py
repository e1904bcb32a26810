"""What every generator family offers the verbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from corecli.diffusion.training import Draws


class Generator(Protocol):
    """A torch module that learns images and makes them; `load("generators", name).build(config)` gives one.

    `config` is the family's frozen dataclass with every choice resolved; its fields and the module's state_dict are
    all a checkpoint needs.
    """

    config: Any

    def check_condition(self, condition: torch.Tensor | None, *, guidance: float = 1.0) -> None:
        """Refuse conditions and a guidance the generator cannot use; call it once for a whole table.

        Errors: UsageError when a condition is missing or unwanted, or guidance was not trained for; DataError when
        its shape, kind or values are wrong.
        """
        ...

    def draw(self, seed: int, step: int, *, batch: int) -> Draws:
        """The random draws of one training step's global batch, on the CPU, a function of (seed, step)."""
        ...

    def loss(self, images: torch.Tensor, condition: torch.Tensor | None, draws: Draws) -> torch.Tensor:
        """The scalar float32 training loss of uint8 images [B, 3, S, S]; a pure function of weights and arguments."""
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
        """Uint8 images [B, 3, S, S] on the generator's device; image i is a function of seeds[i] and its condition.

        None for a choice means what the generator is made for.
        """
        ...
