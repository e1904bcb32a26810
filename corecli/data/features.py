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
from corecli.data.joins import Finder
from corecli.data.rows import Places, as_array, check_unique, make_rows
from corecli.data.strings import pack

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
    keys: Sequence[str]
    groups: Sequence[str]
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

        return self.features.index_select(0, torch.from_numpy(as_array(self.rows_of(keys, or_groups=or_groups))))

    def rows_of(self, keys: Sequence[str], *, or_groups: Sequence[str] | None = None) -> Places:
        """Return the rows of `keys`, as `lookup` finds them: int64, or a range for the keys of the table itself."""
        wanted, own = pack(keys), pack(self.keys)
        if wanted == own:
            return range(len(own))
        rows = self._finder.find(wanted)
        missing = np.flatnonzero(rows < 0)
        if or_groups is not None and len(missing):
            rows[missing] = self._finder.find(pack(or_groups).take(missing))
            missing = np.flatnonzero(rows < 0)
        if len(missing):
            reason = f"{len(missing)} of {len(wanted)} images have no feature: {', '.join(wanted.take(missing[:3]))}"
            raise DataError(reason, hint="extract features from the same image set")
        return rows

    @cached_property
    def _finder(self) -> Finder:
        return Finder(pack(self.keys))


def save_features(path: Path, table: FeatureTable) -> None:
    """Write a table as a safetensors (or `.pt`) file with a hash of its content.

    Errors: DataError if a value is not finite or a column does not fit; CannotCreateError, StorageError.
    """
    import torch

    _check(table, path)
    columns = {
        **pack_strings("keys", pack(table.keys)),
        **pack_strings("groups", pack(table.groups)),
        "labels": table.labels,
    }
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
    rows = make_rows(keys, groups=groups, labels=columns.get("labels"), where=path, is_ours=True)
    table = FeatureTable(
        features=features.float(), keys=rows.keys, groups=rows.groups, labels=rows.labels, header=header
    )
    _check(table, path)
    return table


def _check(table: FeatureTable, where: object) -> None:
    if len({len(table.features), len(table.keys), len(table.groups), len(table.labels)}) > 1:
        raise DataError(f"{len(table.features)} features for {len(table.keys)} keys", where=where)
    check_unique(pack(table.keys), where)
    finite = table.features.isfinite().all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        reason = f"features of {len(bad)} images are not finite, the first of {table.keys[bad[0]]!r}"
        raise DataError(reason, where=where, hint="the encoder diverged, or the file is damaged; extract them again")
