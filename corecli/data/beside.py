"""Arrays that take long to compute, stored in hidden files beside a set, or in the user's cache folder.

A file is used again as long as its identity is that of the set, its size is right and its hashes are those of its
header; otherwise it is computed again. Short arrays are checked when it is opened, and each block of a long one when it
is first read. It can be removed at any time. Where nothing can be written, the arrays stay in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corecli.base.blocks import bytes_of, hashes_name, hashes_of, is_hashes
from corecli.base.documents import loads
from corecli.base.errors import CorecliError
from corecli.base.files import atomic_write, sniff
from corecli.base.layout import HEADER_KEY, METADATA, Index, data_start, make_head, read_index, tensors_of
from corecli.data.mapped import TYPES, map_tensor, open_column

Arrays = dict[str, np.ndarray]

_HINT = "remove the file, and it is made again"
_NAMES = {np.dtype(dtype): name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Beside:
    """Files beside `path`, a file or a directory; identity: a string that changes with the content of the set."""

    path: Path
    identity: str

    def arrays(self, name: str, build: Callable[[], Arrays]) -> Arrays:
        """Return the arrays stored under a name; `build` makes them where there are none. They are memory-mapped."""
        for place in self._places(name):
            if (found := load_arrays(place, self.identity)) is not None:
                return found
        made = build()
        for place in self._places(name):
            try:
                save_arrays(place, self.identity, made)
            except (CorecliError, OSError):
                continue
            if (found := load_arrays(place, self.identity)) is not None:
                return found
        return made

    def _places(self, name: str) -> tuple[Path, Path]:
        path = self.path.absolute()
        inside = path / f".{name}.safetensors"
        near = inside if path.is_dir() else path.with_name(f".{path.name}.{name}.safetensors")
        hashed = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
        return near, cache_folder() / f"{hashed}.{name}.safetensors"


def cache_folder() -> Path:
    """Return the folder for files of corecli that can be made again: XDG_CACHE_HOME/corecli or ~/.cache/corecli."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corecli"


def save_arrays(path: Path, identity: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a safetensors file with an identity and hashes. Errors: CannotCreateError, StorageError."""
    tables = {hashes_name(name): hashes_of(array) for name, array in arrays.items()}
    stored = {**dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize)), **tables}  # wide types first: aligned
    index, end = Index(), 0
    for name, array in stored.items():
        offsets = [end, end := end + array.nbytes]
        index[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
    header = {"kind": "index", "identity": identity, "sha256": _hash(tables)}
    with atomic_write(path) as file:
        file.write(make_head(index, header))
        for array in stored.values():
            file.write(bytes_of(array))


def load_arrays(path: Path, identity: str) -> Arrays | None:
    """Map the arrays of a file; None if there is none, it has another identity, or it is damaged."""
    try:
        if sniff(path) != "safetensors":
            return None
        index, start = read_index(path), data_start(path)
        header = loads(index[METADATA][HEADER_KEY])
        if header["identity"] != identity:
            return None
        tables = {name: map_tensor(path, index, name, start=start).read() for name in index if is_hashes(name)}
        names = [name for name in tensors_of(index) if not is_hashes(name)]
        if set(tables) != {hashes_name(name) for name in names} or _hash(tables) != header["sha256"]:
            return None
        return {name: open_column(path, index, name, start=start, hint=_HINT) for name in names}
    except (CorecliError, OSError, KeyError, TypeError, ValueError):
        return None


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.sha256()
    for name in sorted(arrays):
        hashed.update(bytes_of(arrays[name]))
    return hashed.hexdigest()
