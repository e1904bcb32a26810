"""Refuse model folders whose configuration names code of their own, before any library reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from corecli.base.documents import read_json
from corecli.base.errors import DataError
from corecli.base.schemas import WEIGHT_MAP

_KEYS = ("auto_map", "custom_pipeline", "custom_pipelines")
_KERNELS = "_implementation"  # end of the keys that choose kernels; a value such as OWNER/NAME is code on a hub
INDEX = "model_index.json"
_CONFIGS = ("*config*.json", INDEX)
_ADAPTER = "adapter_config.json"
LIBRARIES = ("diffusers", "transformers")
_DEPTHS = ("", "*/", "*/*/")  # a folder, the parts of a pipeline, and the parts of a pipeline within it
_LONGEST_REASON = 200  # characters
_HINT = "corecli never runs code from a model folder; choose a model that the installed libraries support"


def refuse_code(folder: Path) -> None:
    """Check that neither a model folder nor its parts ask a library to run code from the folder or from elsewhere.

    Adapters are refused too, because they name another folder as their base and modules to import.
    Errors: DataError naming the file and the key, also for damaged configurations.
    """
    configs = {path: read_json(path, any_integer=True) for name in _CONFIGS for path in _find(folder, name)}
    for path, config in configs.items():
        key = next((key for key, value in _members(config) if _names_code(key, value)), None)
        if key is not None:
            raise DataError(f"the key {key!r} names code to run", where=path, hint=_HINT)
        if path.name == _ADAPTER:
            raise DataError("an adapter is not a whole model", where=path, hint="merge it into its base model")
    for path in _find(folder, "*.index.json"):
        read_json(path, WEIGHT_MAP)
    for path, config in configs.items():
        if path.name == INDEX and isinstance(config, dict):
            _refuse_foreign_classes(path, config)
            _refuse_scripts(path.parent)


def reason_of(error: BaseException) -> str:
    """Return the beginning of a library's error, without torch's advice to trust a file of weights that has code."""
    advice = next((text for text in map(str, _causes(error)) if "weights_only" in text), None)
    if advice is not None:
        found = re.search(r"GLOBAL (\S+)", advice)
        return f"the weights contain code or objects{f' ({found[1]})' if found else ''}, which are never read"
    return (str(error).splitlines() or [type(error).__name__])[0][:_LONGEST_REASON]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find(folder: Path, name: str) -> list[Path]:
    return [path for depth in _DEPTHS for path in sorted(folder.glob(f"{depth}{name}"))]


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a configuration, at every depth, with their values if these are not empty."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner:
                yield key, inner
            yield from _members(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _members(inner)


def _names_code(key: str, value: Any) -> bool:
    if not key.endswith(_KERNELS):
        return key in _KEYS
    return any(
        isinstance(name, str) and "/" in name for name in (value.values() if isinstance(value, dict) else [value])
    )


def _refuse_foreign_classes(path: Path, index: dict[str, Any]) -> None:
    """Check that diffusers itself has the class of a pipeline, and diffusers or transformers those of its parts."""
    kind = index.get("_class_name", "")
    if not isinstance(kind, str):
        raise DataError(f"the key '_class_name' names a class outside diffusers: {kind}", where=path, hint=_HINT)
    known = {*LIBRARIES, *_pipeline_modules()}
    for key, value in index.items():
        if not isinstance(value, list) or key.startswith("_"):
            continue
        module, kind = (*value, None, None)[:2]
        if isinstance(module, str) and module not in known:
            reason = f"the key {key!r} names a module outside {' and '.join(LIBRARIES)}: {module!r}"
            raise DataError(reason, where=path, hint=_HINT)
        if module is not None and re.fullmatch("[A-Z][A-Za-z0-9_]*", str(kind)) is None:
            raise DataError(f"the key {key!r} names no class of {module}: {kind!r}", where=path, hint=_HINT)
        if not key.isidentifier():
            raise DataError(f"the key {key!r} names no part", where=path)


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
