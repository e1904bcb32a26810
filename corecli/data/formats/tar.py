"""Tar shards in the WebDataset convention (`part-000000.tar`), or one tar; read in place, never extracted.

The extension of a member starts at the last dot of its name. A `.cls` or `.json` member with the same key may give the
label. An index of offsets is stored beside the shards, so that they are scanned only once.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.documents import loads
from corecli.base.errors import DataError, MissingInputError
from corecli.base.files import atomic_write, seal, sniff
from corecli.base.sums import Watch, check_sums
from corecli.data.decode import EXTENSIONS, encode_png
from corecli.data.encoded import EncodedImage
from corecli.data.formats.parts.checking import check_images
from corecli.data.formats.parts.tar_index import HIDDEN_MANIFEST, Index, check_index, index_of
from corecli.data.formats.parts.tar_seal import Hashed, check_seal, last_member
from corecli.data.formats.parts.writing import Chunk, atomic_directory, begin_stream, check_keys
from corecli.data.manifest import Manifest, check_manifest, finish, manifest_of, read_manifest, rows_from_files
from corecli.data.pixels import EncodedPixels, OnBad, PlainSet, sizes_identity, without_bad
from corecli.data.rows import Rows

SUFFIX = ".tar"
ACCEPTS, PLACE = "tar shards", 1  # directories of shards have tars as well and come before
SHARD_IMAGES = 10_000

Member = tuple[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Members of tar files by position."""

    paths: list[Path]
    index: Index

    def name(self, position: int) -> str:
        """Return the names of the shard and of the member."""
        return f"{self.paths[self.index.shards[position]]}: {self.index.names[position]}"

    def fetch(self, position: int) -> bytes:
        """Return the bytes of the member. Errors: DataError if the file was truncated meanwhile."""
        path, size = self.paths[self.index.shards[position]], int(self.index.sizes[position])
        try:
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), size, int(self.index.offsets[position]))
        except OSError as error:
            raise MissingInputError(f"cannot be read: {error.strerror}", where=path) from error
        if len(data) != size:
            raise DataError("truncated since it was opened", where=self.name(position))
        return data

    def identity(self, positions: Sequence[int]) -> str:
        """Return a hash of the sizes of the members."""
        return sizes_identity(self.index.sizes[positions].tolist())


def claims(spec: str) -> bool:
    """Whether a path is a tar, or a directory with tars."""
    return bool(_shard_paths(Path(spec)))


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open one tar or a directory of shards; rows are sorted by the bytes of their keys.

    Errors: DataError for a damaged tar, a member that is a link or leaves the archive, duplicate keys, an incomplete
    manifest, no images, or images beside the shards, which would be ignored.
    """
    where = Path(spec)
    manifest = _folder_manifest(where) if where.is_dir() else None
    paths = _shard_paths(where)
    index = index_of(paths, _index_path(where))
    if not index.names:
        raise DataError("no images in this tar", where=where, hint=f"looked for {', '.join(sorted(EXTENSIONS))}")
    if manifest is None and index.manifest is not None:
        manifest = check_manifest(index.manifest, where=where)
    keys = [name.rpartition(".")[0] for name in index.names]
    rows, class_names = rows_from_files(keys, manifest, labels=index.labels, where=where)
    pixels = EncodedPixels(store=Shards(paths=paths, index=index), positions=np.arange(len(keys)), resize=image_size)
    return without_bad(PlainSet(rows=rows, pixels=pixels, class_names=class_names), pixels, on_bad, where)


def write(
    path: Path, rows: Rows, chunks: Iterable[Chunk], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write one tar if the name ends in `.tar`, otherwise a new directory of shards and a manifest.

    Every image is `<key>.png`, followed by `<key>.cls` if its label is known.
    Errors: CannotCreateError if the directory holds anything but an earlier image set; StorageError.
    """
    check_keys(rows, path)
    (height, width), arrays = begin_stream(chunks, rows, path)
    header = {**header, "image_size": [height, width]}
    samples = _samples(rows, (("png", encode_png(image)) for chunk in arrays for image in chunk))
    _write_samples(path, rows, samples, class_names, header)


def write_encoded(
    path: Path, rows: Rows, images: Iterable[EncodedImage], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write image files, which may differ in size, as they are. Otherwise as `write`."""
    check_keys(rows, path)
    samples = _samples(rows, ((image.extension, image.data) for image in images))
    _write_samples(path, rows, samples, class_names, header)


def _write_samples(
    path: Path, rows: Rows, samples: Iterator[list[Member]], class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    if path.suffix == SUFFIX:
        manifest = seal(json.dumps(manifest_of(rows, class_names=class_names, header=header)).encode())
        _write_tar(path, chain([[(HIDDEN_MANIFEST, manifest)]], samples))
        return
    with atomic_directory(path) as root:
        names = [f"part-{number:06d}.tar" for number in range(-(-len(rows) // SHARD_IMAGES))]
        hashes = {name: _write_tar(root / name, islice(samples, SHARD_IMAGES)) for name in names}
        finish(root, rows, class_names=class_names, header=header, hashes=hashes)


def verify(path: Path, watch: Watch) -> None:
    """Check the hashes of tars; decode the images of a tar without one.

    Errors: as `open_set`; DataError at the first difference, also of the stored index.
    """
    hashes = (check_sums(path, watch) if path.is_dir() else None) or {}
    paths = _shard_paths(path)
    unhashed = [shard for shard in paths if shard.name not in hashes and not check_seal(shard, watch)]
    check_index(paths, _index_path(path))
    image_set = open_set(str(path), image_size=None, on_bad="fail")
    if unhashed:
        check_images(image_set, watch)


def made_with(path: Path) -> dict[str, Any]:
    """Return the manifest in a tar's first member; {} for a tar of another tool, or a damaged one."""
    try:
        with tarfile.open(path, "r:") as archive:
            first = archive.next()
            content = archive.extractfile(first) if first and first.name == HIDDEN_MANIFEST else None
            found = loads(content.read()) if content else {}
    except (OSError, ValueError, KeyError, OverflowError, tarfile.TarError):  # KeyError: a link to no member
        return {}
    return found if isinstance(found, dict) else {}


def _samples(rows: Rows, files: Iterator[Member]) -> Iterator[list[Member]]:
    """Yield the members of each image; files: (extension, bytes) of each."""
    for key, label, (extension, data) in zip(rows.keys, rows.labels.tolist(), files, strict=True):
        members = [(f"{key}.{extension}", data)]
        yield members if label < 0 else [*members, (f"{key}.cls", str(label).encode())]


def _write_tar(path: Path, samples: Iterable[list[Member]]) -> str:
    """Write a tar, which ends with its seal, and return the SHA-256 of the file."""
    with atomic_write(path) as file:
        hashed = Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[arg-type]
            for name, payload in chain.from_iterable(samples):
                info = tarfile.TarInfo(name)  # without times and owner, so that equal images give equal bytes
                info.size = len(payload)
                archive.addfile(info, io.BytesIO(payload))
            archive.addfile(*last_member(hashed.hexdigest()))
        return hashed.hexdigest()


def _shard_paths(where: Path) -> list[Path]:
    if not where.is_dir():
        return [where] if sniff(where) == "tar" else []
    return sorted(path for path in where.iterdir() if path.suffix == SUFFIX and not path.name.startswith("."))


def _index_path(where: Path) -> Path:
    return where / ".index.safetensors" if where.is_dir() else where.with_name(f".{where.name}.index.safetensors")


def _folder_manifest(where: Path) -> Manifest | None:
    beside = [path.name for path in where.iterdir() if path.suffix[1:].lower() in EXTENSIONS]
    if beside:
        reason = f"contains both tar shards and images such as {min(beside)}"
        raise DataError(reason, where=where, hint="move one kind elsewhere")
    return read_manifest(where)
