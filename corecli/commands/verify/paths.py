"""Recognize what a path is, and check it: a file, an image set, the folder of a run or of a model, or any folder."""

from __future__ import annotations

import os
from pathlib import Path

from corecli.base import checkpoint
from corecli.base.documents import read_json
from corecli.base.errors import DataError
from corecli.base.files import MANIFEST, missing, sniff
from corecli.base.schemas import IDENTITY
from corecli.base.sums import SUMS, Watch, check_sums
from corecli.base.untrusted import INDEX
from corecli.commands.verify.files import Checked, check_file, is_known
from corecli.data.formats.shards import ABOUT
from corecli.data.imageset import check_set, is_named
from corecli.nets.weights.pipelines import OWN, OWN_KIND, is_own

_RUN, _CONFIG = "run.json", "config.json"
_SET_FILES = (MANIFEST, ABOUT)


def check_path(spec: str, watch: Watch) -> Checked:
    """Check everything that a path says of its content.

    Errors: MissingInputError; DataError at the first difference; those of `open_set` for a named set.
    """
    if is_named(spec):
        check_set(spec, watch)
        return "image set", {}
    path = Path(spec)
    path = path.parent if path.name in (MANIFEST, SUMS) and path.is_file() else path
    kind = sniff(path)
    if kind == "missing":
        raise missing(path, "file or directory")
    return check_file(path, watch) if kind != "directory" else _check_directory(path, watch)


def num_bytes(spec: str) -> int:
    """Return the size of a file, or of all files in a folder; 0 for anything else."""
    path = Path(spec)
    if not path.is_dir():
        return path.stat().st_size if path.is_file() else 0
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(os.stat(file).st_size for file in files if os.path.isfile(file))


def _check_directory(path: Path, watch: Watch) -> Checked:
    if (path / _RUN).is_file():
        read_json(path / _RUN, IDENTITY)
        return _check_files(path, "run folder", watch)
    if is_own(path):
        record = checkpoint.require_header(path / OWN, kind=OWN_KIND)["generator"]
        return _check_files(path, "generator folder", watch)[0], record
    if (path / INDEX).is_file() or (path / _CONFIG).is_file():
        return _check_files(path, "model folder", watch)
    if _is_image_set(path):
        check_set(path, watch)
        about = path / MANIFEST
        return "image set", read_json(about) if about.is_file() else {}
    return _check_files(path, "folder", watch)


def _is_image_set(path: Path) -> bool:
    """Whether a directory is one image set; without a manifest, if it holds nothing but images."""
    if any((path / name).is_file() for name in _SET_FILES):
        return True
    visible = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    kinds = {sniff(entry) for entry in visible if entry.is_file()}
    inside = [folder / name for folder in visible if folder.is_dir() for name in (*_SET_FILES, _RUN, _CONFIG)]
    if kinds - {"image", "tar", "unknown"} or any(file.is_file() for file in inside):
        return False
    return bool(kinds & {"image", "tar"}) or any(_has_image(folder) for folder in visible if folder.is_dir())


def _has_image(folder: Path) -> bool:
    """Whether the first file in a folder, or below it, is an image."""
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            return sniff(Path(where, name)) == "image"
    return False


def _check_files(folder: Path, kind: str, watch: Watch) -> Checked:
    """Check the files that `SHA256SUMS` lists by their hashes, and the others one by one; folders as paths."""
    listed = check_sums(folder, watch) or {}
    num = len(listed)
    for entry in sorted(folder.iterdir()):
        if entry.name in listed or entry.name == SUMS:
            continue
        if entry.is_dir() and not any(name.startswith(f"{entry.name}/") for name in listed):
            check_path(str(entry), watch)
            num += 1
        elif is_known(entry):
            check_file(entry, watch)
            num += 1
    if not num:
        raise DataError("holds nothing that can be checked", where=folder)
    return kind, {}
