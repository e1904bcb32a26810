"""A set in shards: a directory of tar, packed or npz files, each a set of its own, which independent jobs may write.

`shards.json` is written first and says whose shards these are and how many; beside each finished shard lies a
`part-000003.json` with its statistics; `manifest.json`, which collects those, is written by whoever finds all there.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.errors import CannotCreateError, DataError
from corecli.base.files import MANIFEST, read_json, sha256_file, storage_errors, write_json
from corecli.base.target import refuse_difference
from corecli.data import imageset
from corecli.data.formats.mixture import MixtureSet
from corecli.data.formats.parts.writing import Chunk, as_array
from corecli.data.manifest import Manifest, check_manifest
from corecli.data.pixels import OnBad
from corecli.data.rows import Rows, make_rows

ABOUT = "shards.json"
ACCEPTS = "a directory of shards"


def claims(spec: str) -> bool:
    """A directory that says it is one of shards."""
    return (Path(spec) / ABOUT).is_file()


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> MixtureSet:
    """Open the shards as one set, their rows in turn.

    Errors: DataError when shards are not made yet, missing, or not those of the manifest.
    """
    root = Path(spec)
    manifest = _manifest(root)
    sets = tuple(_open_shard(root, entry, image_size, on_bad) for entry in manifest["shards"] if entry["num"])
    rows, sizes = _joined([shard.rows for shard in sets], root), [len(shard.rows) for shard in sets]
    return MixtureSet(
        rows=rows,
        class_names=tuple(manifest["class_names"]),
        slots=np.arange(len(rows), dtype=np.int64),
        segments=(len(rows),),
        guard=False,
        sets=sets,
        part_of=np.repeat(np.arange(len(sets)), sizes),
        inner=np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
    )


class ShardFolder:
    """The directory `root` of `num` shards in a format, as it is being filled, by any number of jobs at once."""

    def __init__(self, root: Path, *, num: int, format: str) -> None:
        self.root, self.num, self.format = root, num, format

    def begin(self, identity: Manifest, *, replace: bool) -> None:
        """Make the directory, or find it with shards of the same set; with `replace`, in place of any set of ours.

        Errors: CannotCreateError, StorageError.
        """
        is_ours = claims(str(self.root)) or (self.root / MANIFEST).is_file()
        if replace and is_ours:
            with storage_errors(self.root):
                shutil.rmtree(self.root)
        if claims(str(self.root)):
            refuse_difference(self.root, read_json(self.root / ABOUT), identity)
            return
        if self.root.exists() and (not self.root.is_dir() or any(self.root.glob("[!.]*"))):
            hint = "--force replaces it" if is_ours else "remove it or choose another name"
            raise CannotCreateError("exists already and is something else", where=self.root, hint=hint)
        _publish(self.root / ABOUT, identity)

    def path(self, index: int) -> Path:
        """The file of a shard."""
        return self.root / f"{_name(index)}{imageset.suffix_of(self.format)}"

    def missing(self) -> list[int]:
        """The numbers of the shards that are not finished."""
        return [i for i in range(self.num) if not (self._sidecar(i).is_file() and self._is_whole(self.told(i)))]

    def told(self, index: int) -> Manifest:
        """What is recorded of a finished shard."""
        return read_json(self._sidecar(index))

    def finish_shard(self, index: int, statistics: Statistics, **facts: Any) -> None:
        """Record a shard that is in place, or has no images and no file. Errors: StorageError."""
        path, told = self.path(index), {**statistics.told(), **facts}
        if statistics.num:
            told |= {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(self._sidecar(index), told)

    def drop_shard(self, index: int) -> None:
        """Forget a shard, and with it that the set is complete."""
        for path in (self.root / MANIFEST, self._sidecar(index), self.path(index)):
            path.unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Whether the manifest is there."""
        return (self.root / MANIFEST).is_file()

    def finish(self, *, class_names: tuple[str, ...], header: Manifest) -> None:
        """Write the manifest, all shards being there; whoever does, it has the same bytes. Errors: StorageError."""
        for left in self.root.glob(f".*{ABOUT}.*"):  # by jobs that were killed as they began
            left.unlink(missing_ok=True)
        entries = [self.told(i) for i in range(self.num)]
        totals = {"num": sum(entry["num"] for entry in entries), "class_names": list(class_names), "shards": entries}
        _publish(self.root / MANIFEST, {**header, "kind": "images", "complete": True, **totals})

    def _is_whole(self, told: Manifest) -> bool:
        path = self.root / told.get("file", "")
        return not told["num"] or (path.is_file() and path.stat().st_size == told["bytes"])

    def _sidecar(self, index: int) -> Path:
        return self.root / f"{_name(index)}.json"


class Statistics:
    """What tells at a glance whether the images of a shard went wrong: counted on the way to its writer.

    num: images. blank: of these, how many are of one color, as broken networks and safety checkers make them. mean,
    std: of all pixels of red, green and blue, 0 to 255, exact whatever the order of the images.
    """

    def __init__(self) -> None:
        self.num = self.blank = 0
        self._counts = np.zeros((3, 256), dtype=np.int64)

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks, uint8 [n, 3, H, W], as they are."""
        for chunk in chunks:
            for image in as_array(chunk):
                colors = [np.bincount(channel.ravel(), minlength=256) for channel in image]
                self._counts += colors
                self.blank += all(np.count_nonzero(counts) == 1 for counts in colors)
            self.num += len(chunk)
            yield chunk

    def told(self) -> dict[str, Any]:
        """As JSON values."""
        levels, total = np.arange(256, dtype=np.float64), np.maximum(self._counts.sum(axis=1), 1)
        mean = self._counts @ levels / total
        std = np.sqrt(np.maximum(self._counts @ levels**2 / total - mean**2, 0))
        return {"num": self.num, "blank": self.blank, "mean": mean.round(4).tolist(), "std": std.round(4).tolist()}


def _publish(path: Path, value: Manifest) -> None:
    """As `write_json`, by several jobs at once: each has a temporary file of its own."""
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_json(own, value)
    with storage_errors(path):
        os.replace(own, path)


def _name(index: int) -> str:
    return f"part-{index:06d}"


def _manifest(root: Path) -> Manifest:
    if not (root / MANIFEST).is_file():
        there, num = len(list(root.glob("part-*.json"))), read_json(root / ABOUT).get("shards", "?")
        hint = "run the lines that make the others; the last to end completes the set"
        raise DataError(f"{there} of {num} shards are there", where=root, hint=hint)
    return check_manifest(read_json(root / MANIFEST), where=root)


def _open_shard(root: Path, entry: Manifest, image_size: int | None, on_bad: OnBad) -> imageset.ImageSet:
    path = root / entry["file"]
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        raise DataError("not the shard its manifest was written for", where=path, hint="make or copy it again")
    return imageset.open_set(path, image_size=image_size, on_bad=on_bad)


def _joined(parts: list[Rows], where: Path) -> Rows:
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "origins", "variants")
    }
    measured = [part.similarity for part in parts if part.similarity is not None]
    return make_rows(
        [key for part in parts for key in part.keys],
        groups=[group for part in parts for group in part.groups],
        similarity=np.concatenate(measured) if len(measured) == len(parts) else None,
        where=where,
        **columns,
    )
