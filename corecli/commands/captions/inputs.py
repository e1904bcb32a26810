"""What a run of `captions` reads: concepts, backgrounds and examples, with their fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corecli.base.errors import UsageError, about
from corecli.captions.parts.assignments import Assignments
from corecli.captions.parts.concepts import (
    LISTS,
    Concepts,
    background_file,
    names,
    read_backgrounds,
    read_concepts,
)
from corecli.captions.parts.concepts import fingerprint as fingerprint_files
from corecli.captions.parts.prompts import read_examples


def read_lists(specs: Sequence[str]) -> Concepts:
    """Read the lists of --concepts. Errors: MissingInputError, UsageError, DataError."""
    if not specs:
        raise UsageError("--concepts names no list", hint=f"give a file, or one of {', '.join(names())}")
    return read_concepts(specs)


def assign(
    concepts: Concepts, *, seed: int, templates: tuple[float, ...], backgrounds: str, examples: Path | None
) -> Assignments:
    """Read backgrounds and examples and make the assignments. Errors: MissingInputError, UsageError, DataError."""
    if len(templates) != 3 or sum(templates) <= 0:
        raise UsageError("--templates needs three probabilities", hint="write 0.44,0.45,0.11")
    known = read_backgrounds(backgrounds) if templates[1] else {}
    pools = read_examples(examples)
    with about(backgrounds):
        return Assignments(
            seed=seed, concepts=concepts.concepts, templates=templates, backgrounds=known, examples=pools
        )


def fingerprints(
    concepts: Concepts, specs: Sequence[str], *, backgrounds: str | None, examples: Path | None, model: str | None
) -> dict[str, str | None]:
    """Return fingerprints of the inputs: of a model its name, or the names and sizes of the files in its folder."""
    weights = [spec.partition(":")[2] for spec in specs]
    return {
        "concepts": f"{fingerprint_files(concepts.files)} {' '.join(weights)}".strip(),
        "backgrounds": None if backgrounds is None else fingerprint_files([background_file(backgrounds)]),
        "examples": fingerprint_files([examples or LISTS / "examples.csv"]),
        "model": _fingerprint_folder(Path(model)) if model is not None and Path(model).is_dir() else model,
    }


def job_of(identity: Mapping[str, Any]) -> str:
    """Return a short name for the run with an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _fingerprint_folder(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    listed = "".join(f"{path.name}\0{path.stat().st_size}\0" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]
