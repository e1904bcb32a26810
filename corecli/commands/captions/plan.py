"""The plan of a line of `captions`, and what makes two lines the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base.errors import UsageError, about
from corecli.captions.parts.concepts import (
    LISTS,
    Concepts,
    background_file,
    names,
    read_backgrounds,
    read_concepts,
)
from corecli.captions.parts.concepts import fingerprint as fingerprint_files
from corecli.captions.parts.plan import Plan
from corecli.captions.parts.prompts import read_examples
from corecli.commands.parts.inputs import shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corecli.commands.captions.options import Config


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, the captions of it that this line writes, and what was noted on the way."""

    plan: Plan
    indices: Sequence[int]
    notes: tuple[str, ...]


def read(config: Config) -> Concepts:
    """The concepts of a line. Errors: MissingInputError, UsageError, DataError."""
    if not config.concepts:
        raise UsageError("--concepts names no list", hint=f"a file, or one of {', '.join(names())}")
    return read_concepts(config.concepts)


def make(config: Config) -> Planned:
    """The plan of a line. Errors: MissingInputError, UsageError, DataError."""
    if len(config.templates) != 3 or sum(config.templates) <= 0:
        raise UsageError("--templates takes three chances", hint="write 0.44,0.45,0.11")
    concepts = read(config)
    known = read_backgrounds(config.backgrounds) if config.templates[1] else {}
    examples = read_examples(config.examples)
    with about(config.backgrounds):
        plan = Plan(
            seed=config.seed,
            concepts=concepts.concepts,
            templates=config.templates,
            backgrounds=known,
            examples=examples,
        )
    return Planned(plan=plan, indices=indices(config), notes=concepts.notes)


def indices(config: Config) -> Sequence[int]:
    """The captions of the shard. Errors: UsageError."""
    index, num_shards = shard(config.shard)
    return range(index, config.num, num_shards)


def identity(config: Config) -> dict[str, Any]:
    """Settings and the contents of inputs. A model is known by its name; one in a folder by its files too."""
    examples = config.examples or LISTS / "examples.csv"
    weights = [place.partition(":")[2] for place in config.concepts]
    inputs = {
        "concepts": f"{fingerprint_files(read(config).files)} {' '.join(weights)}".strip(),
        "backgrounds": None,
        "examples": fingerprint_files([examples]),
        "model": config.model,
    }
    if config.templates[1]:
        inputs["backgrounds"] = fingerprint_files([background_file(config.backgrounds)])
    if config.model is not None and Path(config.model).is_dir():
        files = sorted(path for path in Path(config.model).iterdir() if path.is_file())
        told = "".join(f"{path.name}\0{path.stat().st_size}\0" for path in files)
        inputs["model"] = hashlib.sha256(told.encode()).hexdigest()[:16]
    return cfg.identity(config, inputs)


def fingerprint(identity: dict[str, Any]) -> str:
    """A short name for a plan with its backend."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
