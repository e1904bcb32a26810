"""The interface of generators, and generators from checkpoints."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from corecli.base import registry
from corecli.base.checkpoint import Header, Tensors
from corecli.base.config import kind_of
from corecli.base.documents import Schema, check
from corecli.base.errors import CorecliError, DataError, first_line, read_from
from corecli.diffusion.training import Draws
from corecli.nets.initial import shapes_of
from corecli.nets.weights.encoders.names import check_weights


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
    """Return the generator of a loaded checkpoint, for sampling.

    Errors: DataError for an unknown family, settings that do not describe a generator, or weights that do not fit them.
    """
    try:
        with read_from(None, "the generator cannot be built"):
            family = registry.load("generators", header["arch"])
            config = family.Config(**_fields(family.Config, header["generator"]))
            shapes = shapes_of(lambda: family.build(config))
    except CorecliError:
        raise
    except Exception as error:  # of many kinds: settings may be of any size and contradict each other
        raise DataError(f"its header does not describe a generator: {first_line(error)}") from error
    check_weights(tensors, shapes, where=None)
    generator = family.build(config)
    generator.load_state_dict(tensors)
    return generator.eval()


def _fields(config_class: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for the fields of a Config, lists as tuples. Errors: DataError for a wrong name or type."""
    hints = typing.get_type_hints(config_class)
    unknown = next((name for name in settings if name not in hints), None)
    if unknown is not None:
        raise DataError(f"the generator has an unknown setting {unknown!r}", hint="or upgrade corecli to read it")
    schema = {f"{name}?": _schema(hint) for name, hint in hints.items()}
    check(settings, schema, where=None, path="generator")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def _schema(hint: Any) -> Schema:
    kind, many, is_optional = kind_of(hint)
    plain = [kind] if many else typing.get_origin(kind) or kind
    return (plain, None) if is_optional else plain
