"""The index of tar shards: the place of every image, scanned once with strict checks, then stored beside them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from corecli.base.claim import remove_leftovers
from corecli.base.documents import check, loads
from corecli.base.errors import CorecliError, DataError
from corecli.base.files import atomic_write
from corecli.base.schemas import LABEL
from corecli.data.columns import pack_strings, unpack_strings
from corecli.data.decode import EXTENSIONS
from corecli.data.manifest import Manifest
from corecli.data.strings import Strings, pack

HIDDEN_MANIFEST = ".manifest.json"  # first member of a tar written here; WebDataset readers ignore it
_MAX_SIDECAR_BYTES = 1 << 20
_END_OF_ARCHIVE = bytes(tarfile.BLOCKSIZE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """N images sorted by key: member names, shard numbers, byte offsets, sizes, and labels (None if there are none)."""

    names: Strings
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None
    manifest: Manifest | None


def index_of(paths: list[Path], beside: Path) -> Index:
    """Return the index of shards `paths`, from the file `beside` if it is up to date, else by a scan, which writes it.

    If the file cannot be written, the index stays in memory. Errors: DataError naming the shard and the member.
    """
    state = _state(paths)
    found = _load(beside, state)
    if found is None:
        found = scan(paths)
        with suppress(CorecliError):
            _save(beside, state, found)
    return found


def check_index(paths: list[Path], beside: Path) -> None:
    """Compare the stored index, if it is up to date, with a new scan. Errors: as `scan`; DataError if they differ."""
    stored, found = _load(beside, _state(paths)), scan(paths)
    if stored is None:
        return
    same = (stored.names, stored.manifest) == (found.names, found.manifest)
    columns = [(getattr(stored, name), getattr(found, name)) for name in ("shards", "offsets", "sizes", "labels")]
    if not same or not all(np.array_equal(one, other) for one, other in columns):
        raise DataError("differs from the tar shards", where=beside, hint="remove it; it is made again")


def scan(paths: list[Path]) -> Index:
    """Read the header of every member. Errors: DataError for a truncated tar, a duplicate key, or an unsafe member."""
    content = _Content()
    for number, path in enumerate(paths):
        with _tar_errors(path):
            for info, tar in _members(path):
                content.add(info, tar, number, path)
    keys = sorted(content.images)
    found = [content.images[key] for key in keys]
    labels = np.array([content.labels.get(key, -1) for key in keys], dtype=np.int64)
    return Index(
        names=pack(name for name, *_ in found),
        shards=np.array([shard for _, shard, _, _ in found], dtype=np.int32),
        offsets=np.array([offset for _, _, offset, _ in found], dtype=np.int64),
        sizes=np.array([size for *_, size in found], dtype=np.int64),
        labels=labels if content.labels else None,
        manifest=content.manifest,
    )


def _state(paths: list[Path]) -> list[list[Any]]:
    """Return what an index is up to date with."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


@dataclass
class _Content:
    images: dict[str, tuple[str, int, int, int]] = field(default_factory=dict)  # key: name, shard, offset, size
    labels: dict[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None

    def add(self, info: tarfile.TarInfo, tar: tarfile.TarFile, shard: int, path: Path) -> None:
        name = str(PurePosixPath(info.name))
        key, _, extension = name.rpartition(".")
        if name == HIDDEN_MANIFEST:
            if self.manifest is not None:
                hint = "join them with corecli inflate"
                raise DataError("several tars in the directory have their own manifest", where=path, hint=hint)
            self.manifest = loads(_payload(info, tar, path))
        elif any(part.startswith(".") for part in name.split("/")):
            return
        elif extension.lower() in EXTENSIONS:
            if key in self.images:
                reason = f"two members have the key {key!r}: {self.images[key][0]} and {name}"
                raise DataError(reason, where=path, hint="every image needs a key of its own")
            self.images[key] = (name, shard, info.offset_data, info.size)
        elif extension in ("cls", "json"):
            label = _label(_payload(info, tar, path), extension, name, path)
            if label is not None:
                self.labels[key] = label


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield the regular members. tarfile stops silently at a damaged header, so the end mark is checked here."""
    with tarfile.open(path, "r:") as tar, open(path, "rb") as raw:
        for info in tar:
            _refuse_unsafe(info, path)
            if info.isfile():
                yield info, tar
        raw.seek(tar.offset)
        end = raw.read(tarfile.BLOCKSIZE)
        if end != _END_OF_ARCHIVE or path.stat().st_size % tarfile.BLOCKSIZE:
            raise DataError(f"truncated or damaged at byte {tar.offset}", where=path, hint="make or copy it again")


@contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            f"the tar is truncated or damaged: {error}", where=path, hint="make or copy it again"
        ) from error


def _refuse_unsafe(info: tarfile.TarInfo, path: Path) -> None:
    name = info.name.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(
            f"the member {info.name!r} has a path outside the archive", where=path, hint="do not trust this file"
        )
    if info.issym() or info.islnk():
        raise DataError(f"the member {info.name!r} is a link", where=path, hint="pack the files themselves: tar -h")
    if info.issparse() or not (info.isfile() or info.isdir()):
        raise DataError(f"the member {info.name!r} is not a regular file", where=path, hint="pack regular files only")


def _payload(info: tarfile.TarInfo, tar: tarfile.TarFile, path: Path) -> bytes:
    if info.size > _MAX_SIDECAR_BYTES and info.name != HIDDEN_MANIFEST:
        raise DataError(f"the member {info.name!r} is too large for a label", where=path)
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def _label(payload: bytes, extension: str, name: str, path: Path) -> int | None:
    """Return the class number in a `.cls` member, or under "cls" or "label" in a `.json` member; None without one."""
    try:
        if extension == "cls":
            return check(int(payload), LABEL, where=path, path=name)
        fields: Any = loads(payload)
    except ValueError as error:
        raise DataError(f"the member {name!r} is malformed: {error}", where=path) from error
    found = fields.get("cls", fields.get("label")) if isinstance(fields, dict) else None
    return check(found, LABEL, where=path, path=name) if type(found) is int else None


def _save(beside: Path, state: list[list[Any]], index: Index) -> None:
    import safetensors.numpy

    arrays = {
        **pack_strings("names", index.names),
        "shards": index.shards,
        "offsets": index.offsets,
        "sizes": index.sizes,
        **({} if index.labels is None else {"labels": index.labels}),
    }
    metadata = {"state": json.dumps(state), "manifest": json.dumps(index.manifest)}
    metadata["sha256"] = _hash(arrays, metadata)
    remove_leftovers(beside.parent, [beside.name])
    with atomic_write(beside) as file:
        file.write(safetensors.numpy.save(arrays, metadata=metadata))


def _hash(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _load(beside: Path, state: list[list[Any]]) -> Index | None:
    """Load the stored index; None if there is none, it is damaged, or the shards have changed."""
    import safetensors

    try:
        with safetensors.safe_open(beside, "numpy") as file:
            metadata = file.metadata()
            if loads(metadata["state"]) != state:
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if metadata.pop("sha256") != _hash(arrays, metadata):
            return None
        names = unpack_strings("names", arrays, len(arrays["sizes"]), beside)
        return Index(
            names=pack([]) if names is None else names,
            shards=arrays["shards"],
            offsets=arrays["offsets"],
            sizes=arrays["sizes"],
            labels=arrays.get("labels"),
            manifest=loads(metadata["manifest"]),
        )
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, DataError):
        return None
