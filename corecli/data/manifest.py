"""The manifest of a written directory, tar or set in shards: completeness, class names, and columns of rows.

In a directory it is written last, so Make can depend on it. Readers refuse a directory with an incomplete manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from corecli.base.documents import check, read_json
from corecli.base.errors import DataError
from corecli.base.files import MANIFEST, json_bytes, write_json
from corecli.base.schemas import MANIFEST as MANIFEST_SCHEMA
from corecli.base.sums import write_sums
from corecli.data.joins import in_order
from corecli.data.rows import Rows, check_labels, label_by_folder, make_rows
from corecli.data.strings import digest_strings, pack

Manifest = dict[str, Any]


def begin(directory: Path, header: Manifest) -> None:
    """Write an incomplete manifest, which marks a directory as unfinished. Errors: CannotCreateError, StorageError."""
    write_json(directory / MANIFEST, {**header, "kind": "images", "complete": False})


def finish(
    directory: Path, rows: Rows, *, class_names: tuple[str, ...], header: Manifest, hashes: Mapping[str, str]
) -> None:
    """Write the complete manifest, after the hashes of all files. Errors: CannotCreateError, StorageError."""
    write_with_sums(directory, manifest_of(rows, class_names=class_names, header=header), hashes)


def write_with_sums(directory: Path, manifest: Manifest, hashes: Mapping[str, str]) -> None:
    """Write the manifest of a directory, after the SHA-256 of it and of the other files by their names."""
    write_sums(directory, {**hashes, MANIFEST: hashlib.sha256(json_bytes(manifest, sealed=True)).hexdigest()})
    write_json(directory / MANIFEST, manifest, sealed=True)


def manifest_of(rows: Rows, *, class_names: tuple[str, ...], header: Manifest) -> Manifest:
    """Return the manifest of finished images, without columns that follow from keys; constant ones are one value."""
    rows = rows.take(in_order(rows.keys))
    default = make_rows(rows.keys, labels=label_by_folder(rows.keys, class_names)[0])
    columns: dict[str, Any] = {} if rows.groups == default.groups else {"groups": list(rows.groups)}
    for name in ("labels", "origins", "variants"):
        column = getattr(rows, name)
        if not np.array_equal(column, getattr(default, name)):
            columns[name] = int(column[0]) if (column == column[0]).all() else column.tolist()
    if rows.similarity is not None:
        columns["similarity"] = [float(str(value)) for value in rows.similarity]  # shortest exact digits
    return {
        **header,
        "kind": "images",
        "complete": True,
        "num": len(rows),
        "keys_sha256": _keys_hash(rows.keys),
        "class_names": list(class_names),
        "rows": columns,
    }


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of a directory, None for a plain folder. Errors: DataError if it is incomplete."""
    path = directory / MANIFEST
    return check_manifest(read_json(path), where=path) if path.exists() else None


def check_manifest(manifest: Any, *, where: object) -> Manifest:
    """Return `manifest` if it is that of a complete image set. Errors: DataError."""
    if not isinstance(manifest, dict) or manifest.get("kind") != "images":
        raise DataError("not the manifest of an image set", where=where)
    if manifest.get("complete") is not True:
        hint = "run the command that makes them again; it continues where it stopped"
        raise DataError("the image set is incomplete", where=where, hint=hint)
    return check(manifest, MANIFEST_SCHEMA, where=where)


def rows_from_files(
    keys: Sequence[str], manifest: Manifest | None, *, labels: np.ndarray | None = None, where: object
) -> tuple[Rows, tuple[str, ...]]:
    """Return rows and class names for files found under sorted `keys`.

    They come from the manifest, else from `labels` found beside the images, else from the keys.
    Errors: DataError if files were removed or added since the manifest was written.
    """
    if manifest is None:
        by_folder, class_names = label_by_folder(keys)
        if labels is not None:
            return make_rows(keys, labels=labels, where=where), ()
        return make_rows(keys, labels=by_folder, where=where), class_names
    _check_files(keys, manifest, where)
    class_names, columns = tuple(manifest.get("class_names") or ()), manifest.get("rows") or {}
    try:
        rows = make_rows(
            keys,
            groups=columns.get("groups"),
            labels=columns.get("labels", label_by_folder(keys, class_names)[0]),
            origins=columns.get("origins"),
            variants=columns.get("variants"),
            similarity=columns.get("similarity"),
            where=where,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the manifest is malformed: {error}", where=where) from error
    check_labels(rows, class_names, where)
    return rows, class_names


def _check_files(keys: Sequence[str], manifest: Manifest, where: object) -> None:
    num = manifest.get("num", len(keys))
    hint = "make the set again, or remove the manifest to read it as a plain folder"
    if len(keys) != num:
        raise DataError(f"found {len(keys)} images, but the manifest lists {num}", where=where, hint=hint)
    if manifest.get("keys_sha256", _keys_hash(keys)) != _keys_hash(keys):
        raise DataError("the files are not those that the manifest was written for", where=where, hint=hint)


def _keys_hash(keys: Sequence[str]) -> str:
    first, others = keys[:1], keys[1:]
    return digest_strings("".join(first), pack(others))
