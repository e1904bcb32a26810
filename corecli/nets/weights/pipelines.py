"""Folders of pipelines in the layout of diffusers, checked without torch."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from corecli.base import schemas
from corecli.base.documents import read_json
from corecli.base.errors import WHOLE_FOLDER, CannotCreateError, DataError, UnavailableError
from corecli.base.files import sha256_file
from corecli.base.sums import Watch, check_sums
from corecli.base.untrusted import INDEX, LIBRARIES, refuse_code
from corecli.nets.weights.hub import find_folder

OWN, OWN_KIND = "corecli.safetensors", "generator-folder"  # marks a folder that corecli wrote
UNUSED = "safety_checker"  # it blackens images, which would falsify measurements
_CONFIG = "config.json"  # only parts with weights have one
_DESCRIBED = {  # the others, by the end of their class name
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer_config.json",
    "Processor": "*processor_config.json",
    "FeatureExtractor": "*processor_config.json",
}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
_WEIGHTS = (".safetensors", ".bin")
_HALF = ".fp16."
_FILES = [INDEX, *(f"*/*{suffix}" for suffix in (".json", ".txt", ".model", *_WEIGHTS))]


def find_pipeline(place: str) -> Path:
    """Return the folder of a complete pipeline, by its path or by the id of a repository on a hub.

    Errors: MissingInputError, UnavailableError, and those of `check_pipeline`.
    """
    folder = find_folder(place, patterns=_FILES)
    check_pipeline(folder)
    return folder


def check_pipeline(folder: Path) -> None:
    """Check that a pipeline is complete and names no code.

    Errors: DataError naming the part that is missing or incomplete; UnavailableError if a part needs transformers,
    which is not installed.
    """
    refuse_code(folder)
    if not (folder / INDEX).is_file():
        raise DataError(f"not a pipeline of diffusers: {INDEX} is missing", where=folder, hint=WHOLE_FOLDER)
    for name, (library, kind) in parts_of(folder).items():
        part = folder / name
        if not part.is_dir() or not any(part.iterdir()):
            hint = f"{INDEX} names it; {WHOLE_FOLDER}"
            raise DataError(f"the part {name} is missing", where=folder, hint=hint)
        reason = _gap(part, library, kind)
        if reason is not None:
            raise DataError(f"the part {name} {reason}", where=folder, hint=WHOLE_FOLDER)
        if library == "transformers" and find_spec("transformers") is None:
            hint = "pip install 'corecli[text]'"
            raise UnavailableError(f"the part {name} needs transformers", where=folder, hint=hint)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer, or names a tokenizer of bytes, which has none."""
    if any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return True
    about = folder / "tokenizer_config.json"
    return about.is_file() and str(
        read_json(about, schemas.CONFIG, any_integer=True).get("tokenizer_class")
    ).startswith("ByT5")


def _gap(part: Path, library: str, kind: str) -> str | None:
    """Return what is missing in the folder of a part, or None."""
    describing = next((name for end, name in _DESCRIBED.items() if kind.removesuffix("Fast").endswith(end)), _CONFIG)
    if library in LIBRARIES and not any(part.glob(describing)):
        return f"has no {describing}"
    if (part / _CONFIG).is_file() and not _weights(part):
        return "has no weights"
    return "has no vocabulary" if "Tokenizer" in kind and not has_tokenizer(part) else None


def is_own(folder: Path) -> bool:
    """Whether a folder holds a generator that corecli wrote."""
    return (folder / OWN).is_file()


def check_export(folder: Path) -> None:
    """Check the hashes of a folder that corecli exported, or of the one that has it as a part. Errors: DataError."""
    for place in (folder, folder.parent):
        if is_own(place):
            check_sums(place, Watch())


def refuse_others(folder: Path) -> None:
    """Check that a folder may be replaced: it is absent, empty or corecli wrote it. Errors: CannotCreateError."""
    if folder.exists() and not is_own(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise CannotCreateError("already exists and is something else", where=folder, hint="choose another name")


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return (library, class) of the parts that a pipeline is loaded with, by name. Errors: DataError."""
    index = read_json(folder / INDEX, dict, any_integer=True)
    if "_class_name" not in index:
        raise DataError("the pipeline class is missing", where=folder / INDEX)
    listed = {name: part for name, part in index.items() if isinstance(part, list) and len(part) == 2}
    return {
        name: (str(library), str(kind))
        for name, (library, kind) in listed.items()
        if library is not None and name != UNUSED
    }


def networks_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the parts with weights, as `parts_of` does. Errors: DataError."""
    return {
        name: (library, kind)
        for name, (library, kind) in parts_of(folder).items()
        if library in LIBRARIES and (folder / name / _CONFIG).is_file() and _weights(folder / name)
    }


def variant_of(folder: Path) -> str | None:
    """Return `fp16` if a part has weights of that variant only, else None."""
    weights = [_weights(folder / name) for name in parts_of(folder)]
    return "fp16" if any(names and all(_HALF in name for name in names) for names in weights) else None


def has_half(part: Path) -> bool:
    """Whether a part holds weights of the variant `fp16`."""
    return any(_HALF in name for name in _weights(part))


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of every file that a pipeline is loaded from."""
    found: Any = hashlib.sha256()
    files = [folder / INDEX, *(path for name in parts_of(folder) for path in sorted((folder / name).rglob("*")))]
    for path in files:
        if path.is_file():
            found.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\0".encode())
    return found.hexdigest()


def _weights(part: Path) -> list[str]:
    return sorted(path.name for path in part.iterdir() if path.suffix in _WEIGHTS)
