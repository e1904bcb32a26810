"""A set in shards: a directory of files, each a set of its own, which independent jobs may write.

`shards.json` is written first, with the identity of the set and the number of shards. Each finished shard has a record
beside it, such as `part-000003.json`, with its statistics. The job that finds all shards finished collects the records
in `manifest.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.claim import claimed, remove_leftovers
from corecli.base.documents import check, read_json
from corecli.base.errors import CannotCreateError, DataError
from corecli.base.files import MANIFEST, sha256_file, sniff, storage_errors, write_json
from corecli.base.schemas import IDENTITY, SHARD, SHARDS, SHARDS_STARTED
from corecli.base.sums import SUMS, Watch, check_sum, check_sums
from corecli.base.target import refuse_difference
from corecli.data import imageset
from corecli.data.formats.mixture import MixtureSet
from corecli.data.formats.parts.writing import Chunk, as_array
from corecli.data.manifest import Manifest, check_manifest, write_with_sums
from corecli.data.pixels import OnBad
from corecli.data.rows import Rows, make_rows
from corecli.data.strings import JoinedStrings

ABOUT = "shards.json"
ACCEPTS = "a directory of shards"


def claims(spec: str) -> bool:
    """Whether a path is a directory of shards."""
    return (Path(spec) / ABOUT).is_file()


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> MixtureSet:
    """Open the shards as one set with their rows in turn.

    Errors: DataError if shards are unfinished, missing, or not those of the manifest.
    """
    root = Path(spec)
    manifest = _manifest(root)
    sets = tuple(_open_shard(root, entry, image_size, on_bad) for entry in manifest["shards"] if entry["num"])
    if not sets:
        raise DataError("the image set is empty", where=root)
    rows = _joined([shard.rows for shard in sets], root)
    return MixtureSet(
        rows=rows,
        class_names=tuple(manifest["class_names"]),
        slots=range(len(rows)),
        segments=(len(rows),),
        guard=False,
        sets=sets,
        chosen=tuple(range(len(shard.rows)) for shard in sets),
    )


def verify(path: Path, watch: Watch) -> None:
    """Check the hashes of the shards and of their records.

    Errors: as `open_set`; DataError naming the first file that is absent or differs.
    """
    hashes, entries = check_sums(path, watch) or {}, _manifest(path)["shards"]
    for entry in entries:
        if entry["num"] and "sha256" in entry and entry["file"] not in hashes:
            check_sum(path / entry["file"], entry["sha256"], watch)
    open_set(str(path), image_size=None, on_bad="fail")


class ShardFolder:
    """The directory `root` for `num` shards of a format, which any number of jobs may fill at once."""

    def __init__(self, root: Path, *, num: int, format: str) -> None:
        self.root, self.num, self.format = root, num, format

    def begin(self, identity: Manifest, *, replace: bool) -> None:
        """Create the directory, unless it has shards of the same set; `replace` removes any earlier image set.

        Errors: CannotCreateError, StorageError.
        """
        is_ours = claims(str(self.root)) or (self.root / MANIFEST).is_file()
        if replace and is_ours:
            with storage_errors(self.root):
                shutil.rmtree(self.root)
        if claims(str(self.root)):
            refuse_difference(self.root, read_json(self.root / ABOUT, IDENTITY), identity)
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.glob("[!.]*"))):
            hint = "--force replaces it" if is_ours else "remove it or choose another name"
            raise CannotCreateError("already exists and is something else", where=self.root, hint=hint)
        # Other shards may start at the same time. Of a job that was killed here, the lock is left, which goes as well.
        with claimed([self.root / ABOUT], note=_ignored):
            if not claims(str(self.root)):
                write_json(self.root / ABOUT, identity)
        refuse_difference(self.root, read_json(self.root / ABOUT), identity)

    def path(self, index: int) -> Path:
        """Return the path of a shard."""
        return self.root / f"{_name(index)}{imageset.suffix_of(self.format)}"

    def missing(self) -> list[int]:
        """Return the numbers of unfinished shards."""
        return [i for i in range(self.num) if not (self._sidecar(i).is_file() and self._is_whole(self.record(i)))]

    def record(self, index: int) -> Manifest:
        """Return the record of a finished shard."""
        return read_json(self._sidecar(index), SHARD)

    def finish_shard(self, index: int, statistics: Statistics, **facts: Any) -> None:
        """Write the record of a shard that is written, or that has no images and no file. Errors: StorageError."""
        path, record = self.path(index), {**statistics.to_json(), **facts}
        if statistics.num:
            record |= {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(self._sidecar(index), record, sealed=True)

    def clear_shards(self, indices: Iterable[int]) -> None:
        """Remove what killed jobs have left of shards; this job holds the locks of these shards."""
        names = [path.name for index in indices for path in (self.path(index), self._sidecar(index))]
        remove_leftovers(self.root, names, alive=True)
        remove_leftovers(self.root, [ABOUT, MANIFEST, SUMS])  # which every job writes

    def drop_shard(self, index: int) -> None:
        """Remove a shard, its record, and the manifest with the hashes of all."""
        for path in (self.root / MANIFEST, self.root / SUMS, self._sidecar(index), self.path(index)):
            path.unlink(missing_ok=True)

    def is_finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.root / MANIFEST).is_file()

    def finish(self, *, class_names: tuple[str, ...], header: Manifest) -> None:
        """Write the manifest of finished shards; its bytes are the same for every job. Errors: StorageError."""
        remove_leftovers(self.root, [ABOUT, MANIFEST, SUMS])
        entries = [self.record(i) for i in range(self.num)]
        totals = {"num": sum(entry["num"] for entry in entries), "class_names": list(class_names), "shards": entries}
        names = [ABOUT, *(self._sidecar(i).name for i in range(self.num))]
        hashes = {name: sha256_file(self.root / name) for name in names}
        hashes |= {entry["file"]: entry["sha256"] for entry in entries if entry["num"]}
        write_with_sums(self.root, {**header, "kind": "images", "complete": True, **totals}, hashes)

    def _is_whole(self, record: Manifest) -> bool:
        path = self.root / record.get("file", "")
        return not record["num"] or (path.is_file() and path.stat().st_size == record["bytes"])

    def _sidecar(self, index: int) -> Path:
        return self.root / f"{_name(index)}.json"


class Statistics:
    """Statistics that show whether the images of a shard went wrong, counted while they are written.

    num: number of images. blank: number of images of a single color, which broken networks and safety checkers make.
    mean, std: of all red, green and blue pixels, 0 to 255, exact for any order of the images.
    """

    def __init__(self) -> None:
        self.num = self.blank = 0
        self._counts = np.zeros((3, 256), dtype=np.int64)

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks, uint8 [n, 3, H, W], unchanged."""
        for chunk in chunks:
            for image in as_array(chunk):
                colors = [np.bincount(channel.ravel(), minlength=256) for channel in image]
                self._counts += colors
                self.blank += all(np.count_nonzero(counts) == 1 for counts in colors)
            self.num += len(chunk)
            yield chunk

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON values."""
        levels, total = np.arange(256, dtype=np.float64), np.maximum(self._counts.sum(axis=1), 1)
        mean = self._counts @ levels / total
        std = np.sqrt(np.maximum(self._counts @ levels**2 / total - mean**2, 0))
        return {"num": self.num, "blank": self.blank, "mean": mean.round(4).tolist(), "std": std.round(4).tolist()}


def _ignored(note: str) -> None:
    """Take no notice of a file system without locks: the line has a note on it already."""


def _name(index: int) -> str:
    return f"part-{index:06d}"


def _manifest(root: Path) -> Manifest:
    if not (root / MANIFEST).is_file():
        there, num = len(list(root.glob("part-*.json"))), read_json(root / ABOUT, SHARDS_STARTED).get("shards", "?")
        hint = "run the lines of the other shards; the last one completes the set"
        raise DataError(f"only {there} of {num} shards are finished", where=root, hint=hint)
    manifest = check_manifest(read_json(root / MANIFEST), where=root / MANIFEST)
    return check(manifest, SHARDS, where=root / MANIFEST)


def _open_shard(root: Path, entry: Manifest, image_size: int | None, on_bad: OnBad) -> imageset.ImageSet:
    path = root / entry["file"]
    if not path.is_file() or path.is_symlink() or path.stat().st_size != entry["bytes"] or sniff(path) == "json":
        raise DataError("not the shard that the manifest was written for", where=path, hint="make or copy it again")
    return imageset.open_set(path, image_size=image_size, on_bad=on_bad)


def _joined(parts: list[Rows], where: Path) -> Rows:
    keys, groups = (
        JoinedStrings([("", getattr(part, name), range(len(part))) for part in parts]) for name in ("keys", "groups")
    )
    measured = [part.similarity for part in parts if part.similarity is not None]
    return make_rows(
        keys,
        groups=groups,
        labels=np.concatenate([part.labels for part in parts]),
        origins=np.concatenate([part.origins for part in parts]),
        variants=np.concatenate([part.variants for part in parts]),
        similarity=np.concatenate(measured) if len(measured) == len(parts) else None,
        where=where,
    )
