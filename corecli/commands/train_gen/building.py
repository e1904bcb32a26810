"""Build the generator of a run and what trains it, with weights that are functions of the seed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from corecli.base import registry
from corecli.base.config import flag, parse_fields
from corecli.base.errors import UsageError
from corecli.engine.dist import World
from corecli.generators.parts.learning import Learner, OwnStepLearner, TrainOptions
from corecli.nets.autoencoder import FirstStage
from corecli.nets.initial import seeded


def build_generator(
    arch: str, given: dict[str, Any], settings: dict[str, str], *, first_stage: FirstStage | None, seed: int
) -> Any:
    """Build a generator with new weights.

    given: fields of the family's Config by name; those that are None are left at their defaults. settings: fields as
    text, from --set.
    Errors: UsageError for an option that the family does not have, or for values that do not fit together.
    """
    family = registry.load("generators", arch)
    chosen = {name: value for name, value in given.items() if value is not None}
    known = {f.name for f in fields(family.Config)}
    for name in chosen:
        if name not in known:
            raise UsageError(f"{flag(name)} does not apply to --arch {arch}")
    chosen |= parse_fields(family.Config, settings, where=arch)
    with seeded(seed, "generator"):
        generator = family.build(family.Config(**chosen))
    if first_stage is not None:
        generator.first_stage.load_state_dict(first_stage.state_dict())
    return generator


def build_learner(
    arch: str, generator: Any, options: TrainOptions, *, seed: int, world: World
) -> Learner | OwnStepLearner:
    """Return what trains a generator: the family's own learner if it has one."""
    family = registry.load("generators", arch)
    with seeded(seed, "learner"):
        if hasattr(family, "learner"):
            return family.learner(generator, options, world)
        return Learner(generator, options)
