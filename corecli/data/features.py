"""Feature tables: one vector per image, joined to images by key, never by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base import checkpoint
from corecli.base.errors import DataError
from corecli.data.columns import pack_strings, unpack_strings
from corecli.data.rows import make_rows

if TYPE_CHECKING:
    import torch

KIND = "features"
_OWN_FIELDS = ("kind", "format", "corecli", "fingerprint")


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureTable:
    """N feature vectors with the keys, groups and labels of their images.

    features: float32 [N, D], finite. keys: unique. groups: one per row. labels: int64 [N], -1 unknown.
    header: JSON. `extract` writes encoder (fingerprint of its file), layer, space (backbone and layer), preprocessing,
    source (fingerprint of the set), class_names and config; a loaded table has kind, format, corecli and fingerprint as
    well.
    """

    features: torch.Tensor
    keys: list[str]
    groups: list[str]
    labels: np.ndarray
    header: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    def lookup(self, keys: Sequence[str], *, or_groups: Sequence[str] | None = None) -> torch.Tensor:
        """Return the features of `keys`, float32 [len(keys), D], in their order.

        If `keys[i]` is not in the table, the row of `or_groups[i]` is used: a synthetic image is found by the source
        whose feature it was made from (CORE, Eq. 7). Errors: DataError naming the first missing keys.
        """
        import torch

        rows = [self._row_of.get(key, -1) for key in keys]
        if or_groups is not None:
            pairs = zip(rows, or_groups, strict=True)
            rows = [self._row_of.get(group, -1) if row < 0 else row for row, group in pairs]
        missing = [key for key, row in zip(keys, rows, strict=True) if row < 0]
        if missing:
            reason = f"{len(missing)} of {len(keys)} images have no feature: {', '.join(missing[:3])}"
            raise DataError(reason, hint="extract features from the same image set")
        return self.features.index_select(0, torch.tensor(rows, dtype=torch.int64))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}


def save_features(path: Path, table: FeatureTable) -> None:
    """Write a table as a safetensors (or `.pt`) file with a hash of its content.

    Errors: DataError if a value is not finite or a column does not fit; CannotCreateError, StorageError.
    """
    import torch

    _check(table, path)
    columns = {**pack_strings("keys", table.keys), **pack_strings("groups", table.groups), "labels": table.labels}
    tensors = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
    header = {name: value for name, value in table.header.items() if name not in _OWN_FIELDS}
    checkpoint.save(Path(path), {"features": table.features.float(), **tensors}, kind=KIND, **header)


def load_features(path: Path) -> FeatureTable:
    """Read a table and verify its hash and content.

    Errors: MissingInputError; DataError if it is truncated, damaged, of another kind, or not finite (naming the row).
    """
    tensors, header = checkpoint.load(Path(path), kind=KIND)
    features = tensors.get("features")
    if features is None or features.ndim != 2 or not features.is_floating_point():
        raise DataError("the file has no features [N, D]", where=path)
    columns = {name: tensor.numpy() for name, tensor in tensors.items() if name != "features"}
    keys = unpack_strings("keys", columns, len(features), path)
    if keys is None:
        raise DataError("the file has no keys", where=path)
    groups = unpack_strings("groups", columns, len(features), path)
    rows = make_rows(keys, groups=groups, labels=columns.get("labels"), where=path)
    table = FeatureTable(
        features=features.float(), keys=rows.keys, groups=rows.groups, labels=rows.labels, header=header
    )
    _check(table, path)
    return table


def _check(table: FeatureTable, where: object) -> None:
    if len({len(table.features), len(table.keys), len(table.groups), len(table.labels)}) > 1:
        raise DataError(f"{len(table.features)} features for {len(table.keys)} keys", where=where)
    if len(set(table.keys)) < len(table.keys):
        make_rows(table.keys, where=where)  # raises, naming the key
    finite = table.features.isfinite().all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        reason = f"features of {len(bad)} images are not finite, the first of {table.keys[bad[0]]!r}"
        raise DataError(reason, where=where, hint="the encoder diverged, or the file is damaged; extract them again")
