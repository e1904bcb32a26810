"""A directory of image files; class sub-folders, if any, give the labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.errors import DataError, MissingInputError, StorageError
from corecli.base.files import MANIFEST, storage_errors
from corecli.base.sums import SUMS, Watch, check_sums
from corecli.data.decode import EXTENSIONS, encode_png
from corecli.data.encoded import EncodedImage
from corecli.data.formats.parts.checking import check_images
from corecli.data.formats.parts.writing import Chunk, atomic_directory, begin_stream, check_keys
from corecli.data.manifest import finish, read_manifest, rows_from_files
from corecli.data.pixels import EncodedPixels, OnBad, PlainSet, sizes_identity, without_bad
from corecli.data.rows import Rows

SUFFIX = ""  # any name without the suffix of another format
ACCEPTS, PLACE = "a directory of images", 2  # it claims any directory, so it comes last


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files by position; `names` are paths relative to `root`."""

    root: Path
    names: list[str]

    def name(self, position: int) -> str:
        """Return the path of the file."""
        return str(self.root / self.names[position])

    def fetch(self, position: int) -> bytes:
        """Return the bytes of the file. Errors: MissingInputError."""
        try:
            with open(self.name(position), "rb") as file:
                return file.read()
        except OSError as error:
            raise MissingInputError(f"cannot be read: {error.strerror}", where=self.name(position)) from error

    def identity(self, positions: Sequence[int]) -> str:
        """Return a hash of the sizes of the files."""
        return sizes_identity(os.stat(self.name(position)).st_size for position in positions)


def claims(spec: str) -> bool:
    """Whether a path is a directory."""
    return Path(spec).is_dir()


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open the images below a directory, sorted by the bytes of their keys; hidden and other files are ignored.

    Errors: DataError if there are none, if the manifest is incomplete, or if two files have the same key.
    """
    root = Path(spec)
    manifest = read_manifest(root)
    names = _by_key(_walk(root), root)
    if not names:
        raise DataError("no images in this directory", where=root, hint=f"looked for {', '.join(sorted(EXTENSIONS))}")
    keys = list(names)
    rows, class_names = rows_from_files(keys, manifest, where=root)
    store = Files(root=root, names=list(names.values()))
    pixels = EncodedPixels(store=store, positions=np.arange(len(keys)), resize=image_size)
    return without_bad(PlainSet(rows=rows, pixels=pixels, class_names=class_names), pixels, on_bad, root)


def write(
    path: Path, rows: Rows, chunks: Iterable[Chunk], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write PNG files `<key>.png` and a manifest as a new directory, which may replace an earlier image set.

    Errors: CannotCreateError if the path holds anything else; StorageError.
    """
    check_keys(rows, path)
    (height, width), arrays = begin_stream(chunks, rows, path)
    with atomic_directory(path) as root:
        start, hashes = 0, {}
        for images in arrays:
            hashes |= put(root, rows.keys[start : start + len(images)], images)
            start += len(images)
        _refuse_lost(root, len(rows), path)
        finish(root, rows, class_names=class_names, header={**header, "image_size": [height, width]}, hashes=hashes)


def verify(path: Path, watch: Watch) -> None:
    """Check the hashes of the files in a directory; without hashes, decode every image.

    Errors: as `open_set`; DataError naming the first file that is absent, differs, or was added.
    """
    hashes = check_sums(path, watch) or {}
    image_set = open_set(str(path), image_size=None, on_bad="fail")
    if MANIFEST not in hashes:
        check_images(image_set, watch)
        return
    added = next((name for name in _walk(path) if name not in hashes), None)
    if added is not None:
        raise DataError(f"is not listed in {SUMS}", where=path / added, hint="remove it, or make the set again")


def write_encoded(
    path: Path, rows: Rows, images: Iterable[EncodedImage], *, class_names: tuple[str, ...], header: dict[str, Any]
) -> None:
    """Write image files, which may differ in size, as they are, each with the extension of its format.

    Errors: as `write`.
    """
    check_keys(rows, path)
    with atomic_directory(path) as root:
        files = ((f"{key}.{image.extension}", image.data) for key, image in zip(rows.keys, images, strict=True))
        hashes = {name: _put_file(root / name, data) for name, data in files}
        _refuse_lost(root, len(rows), path)
        finish(root, rows, class_names=class_names, header=header, hashes=hashes)


def put(root: Path, keys: Sequence[str], images: np.ndarray) -> dict[str, str]:
    """Write images, uint8 [n, 3, H, W], as `root/<key>.png`; return their SHA-256 by name.

    Errors: CannotCreateError, StorageError.
    """
    names = [f"{key}.png" for key in keys]
    return {name: _put_file(root / name, encode_png(pixels)) for name, pixels in zip(names, images, strict=True)}


def _put_file(target: Path, data: bytes) -> str:
    """Write a file; return its SHA-256."""
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _refuse_lost(root: Path, num_rows: int, path: Path) -> None:
    """Check that every row has a file. Errors: StorageError."""
    num = sum(1 for _ in _walk(root))
    if num != num_rows:
        hint = "another program removed some; run the same line again"
        raise StorageError(f"{num} of {num_rows} images are there after writing", where=path, hint=hint)


def _by_key(names: Iterator[str], root: Path) -> dict[str, str]:
    """Return names by key, sorted by key; code points sort in the order of their UTF-8 bytes."""
    found: dict[str, str] = {}
    for name in names:
        key = name.rpartition(".")[0]
        if key in found:
            reason = f"two files have the key {key!r}: {found[key]} and {name}"
            raise DataError(reason, where=root, hint="rename or remove one of them")
        found[key] = name
    return dict(sorted(found.items()))


def _walk(root: Path, inside: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield paths of image files relative to `root`; links are followed, except in circles."""
    folder = os.path.join(root, inside)
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise MissingInputError(f"cannot be listed: {error.strerror}", where=folder) from error
    above = (*above, os.path.realpath(folder))
    for entry in found:
        if entry.is_dir():
            if os.path.realpath(entry.path) in above:
                raise DataError("links to a folder that contains it", where=entry.path, hint="remove the link")
            yield from _walk(root, f"{inside}{entry.name}/", above)
        elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
            if not entry.is_file() and os.path.exists(entry.path):
                raise DataError("not a regular file", where=entry.path, hint="remove it, or save its content in a file")
            yield f"{inside}{entry.name}"
