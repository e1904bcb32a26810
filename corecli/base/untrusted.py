"""Refuse model folders whose configuration names code of their own, before any library reads them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from corecli.base.documents import loads
from corecli.base.errors import DataError

_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines")
INDEX = "model_index.json"
_CONFIGS = ("*config*.json", INDEX)
LIBRARIES = ("diffusers", "transformers")
_DEPTHS = ("", "*/", "*/*/")  # a folder, the parts of a pipeline, and the parts of a pipeline within it
_HINT = "corecli never runs code from a model folder; choose a model that the installed libraries support"


def refuse_code(folder: Path) -> None:
    """Check that neither a model folder nor its parts ask a library to run code from the folder or from elsewhere.

    Errors: DataError naming the file and the key.
    """
    patterns = [f"{depth}{name}" for depth in _DEPTHS for name in _CONFIGS]
    configs = {path: _read(path) for pattern in patterns for path in sorted(folder.glob(pattern))}
    for path, config in configs.items():
        key = next((key for key in _keys(config) if key in _KEYS), None)
        if key is not None:
            raise DataError(f"the key {key!r} names code to run", where=path, hint=_HINT)
    for path, config in configs.items():
        if path.name == INDEX and isinstance(config, dict):
            _refuse_foreign_classes(path, config)
            _refuse_scripts(path.parent)


def _read(path: Path) -> Any:
    """Return the content of a configuration; None if it is damaged, which the library that loads it reports."""
    try:
        return loads(path.read_bytes(), any_integer=True) if path.is_file() else None
    except (OSError, ValueError):
        return None


def _keys(value: Any) -> Iterator[str]:
    """Yield the keys of a configuration, at every depth, that have a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner:
                yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


def _refuse_foreign_classes(path: Path, index: dict[str, Any]) -> None:
    """Check that diffusers itself has the class of a pipeline, and diffusers or transformers those of its parts."""
    known = {*LIBRARIES, *_pipeline_modules()}
    for key, value in index.items():
        module = value[0] if isinstance(value, list) and value else None
        if key == "_class_name" and not isinstance(value, str):
            raise DataError(f"the key {key!r} names a class outside diffusers: {value}", where=path, hint=_HINT)
        if isinstance(module, str) and module not in known:
            reason = f"the key {key!r} names a module outside {' and '.join(LIBRARIES)}: {module!r}"
            raise DataError(reason, where=path, hint=_HINT)


def _pipeline_modules() -> set[str]:
    """Return the modules of pipelines in diffusers, by which a pipeline may name the module of a part."""
    spec = find_spec("diffusers")
    roots = spec.submodule_search_locations or () if spec is not None else ()
    places = (Path(root, "pipelines", below) for root in roots for below in (".", "deprecated"))
    return {path.name for place in places if place.is_dir() for path in place.iterdir() if path.is_dir()}


def _refuse_scripts(folder: Path) -> None:
    """Check that a pipeline holds no Python files, since versions of diffusers run some of them by their name."""
    script = next((path for pattern in ("*.py", "*/*.py") for path in sorted(folder.glob(pattern))), None)
    if script is not None:
        hint = "corecli never runs code from a model folder; remove the file if the pipeline does not need it"
        raise DataError("a pipeline with code of its own", where=script, hint=hint)
