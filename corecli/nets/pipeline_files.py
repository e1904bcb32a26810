"""Folders of whole pipelines in the layout of diffusers, looked through without torch."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from corecli.base.errors import CannotCreateError, DataError, UnavailableError
from corecli.base.files import read_json, sha256_file
from corecli.nets.hub import find_folder

INDEX = "model_index.json"
OWN, OWN_KIND = "corecli.safetensors", "generator-folder"  # beside the parts of a folder that we have written
UNUSED = "safety_checker"  # blackens images, which no one who measures a generator wants
_CONFIG = "config.json"  # only parts with weights have one
_WEIGHTS = (".safetensors", ".bin")
_HALF = ".fp16."
_FILES = [INDEX, *(f"*/*{suffix}" for suffix in (".json", ".txt", ".model", *_WEIGHTS))]


def find_pipeline(place: str) -> Path:
    """The folder of a pipeline with every part in it, by its path or by an id of a hub.

    Errors: MissingInputError, UnavailableError, and those of `check_pipeline`.
    """
    folder = find_folder(place, patterns=_FILES)
    check_pipeline(folder)
    return folder


def check_pipeline(folder: Path) -> None:
    """Errors: DataError for a folder that is no pipeline, or naming the part that is missing or has no weights;
    UnavailableError where a part needs transformers and it is not installed."""
    if not (folder / INDEX).is_file():
        raise DataError(f"not a pipeline of diffusers: it has no {INDEX}", where=folder)
    parts = parts_of(folder)
    for name, library in parts.items():
        part = folder / name
        if not part.is_dir() or not any(part.iterdir()):
            hint = f"{INDEX} names it; copy or download the whole folder"
            raise DataError(f"the part {name} is missing", where=folder, hint=hint)
        if (part / _CONFIG).is_file() and not _weights(part):
            raise DataError(f"the part {name} holds no weights", where=folder, hint="copy or download the whole folder")
        if library == "transformers" and find_spec("transformers") is None:
            hint = "pip install 'corecli[text]'"
            raise UnavailableError(f"the part {name} needs transformers", where=folder, hint=hint)


def is_own(folder: Path) -> bool:
    """Whether it is a generator of ours, written by `generators._folders`."""
    return (folder / OWN).is_file()


def refuse_others(folder: Path) -> None:
    """Errors: CannotCreateError where a generator is to be written over anything but an earlier one of ours."""
    if folder.exists() and not is_own(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise CannotCreateError("exists already and is something else", where=folder, hint="choose another name")


def parts_of(folder: Path) -> dict[str, str]:
    """The parts that a pipeline is loaded with: the library of each, by name. Errors: DataError."""
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or "_class_name" not in index:
        raise DataError("names no class of pipelines", where=folder / INDEX)
    listed = {name: part for name, part in index.items() if isinstance(part, list) and len(part) == 2}
    return {name: str(library) for name, (library, _) in listed.items() if library is not None and name != UNUSED}


def variant_of(folder: Path) -> str | None:
    """`fp16` where some part has weights of that variant alone, else None."""
    weights = [_weights(folder / name) for name in parts_of(folder)]
    return "fp16" if any(names and all(_HALF in name for name in names) for names in weights) else None


def fingerprint(folder: Path) -> str:
    """The sha256 of the names and contents of every file that a pipeline is loaded from."""
    found: Any = hashlib.sha256()
    files = [folder / INDEX, *(path for name in parts_of(folder) for path in sorted((folder / name).rglob("*")))]
    for path in files:
        if path.is_file():
            found.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\0".encode())
    return found.hexdigest()


def _weights(part: Path) -> list[str]:
    return sorted(path.name for path in part.iterdir() if path.suffix in _WEIGHTS)
