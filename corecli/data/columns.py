"""Convert rows to plain numeric arrays and back. The packed and npz formats store these.

A column of strings is stored as UTF-8 bytes and offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from corecli.base.errors import DataError
from corecli.data.rows import Rows, make_rows
from corecli.data.strings import PackedStrings, Strings, pack, to_arrays

Columns = dict[str, np.ndarray]


def to_columns(rows: Rows) -> Columns:
    """Return rows as arrays: `keys.bytes` uint8, `keys.offsets` int64 [N + 1], the same for groups, and the numbers."""
    return {
        **pack_strings("keys", rows.keys),
        **pack_strings("groups", rows.groups),
        "labels": rows.labels,
        "origins": rows.origins,
        "variants": rows.variants,
        **({} if rows.similarity is None else {"similarity": rows.similarity}),
    }


def from_columns(
    columns: Mapping[str, np.ndarray], *, num: int, where: object, is_ours: bool = False, num_groups: int | None = None
) -> Rows:
    """Return the rows of a set of `num` images; this is the inverse of `to_columns`. Arrays are not copied.

    Files of other tools may have any subset of the columns. Missing keys are row numbers; the other defaults follow
    from the keys. is_ours: the columns come from a file that `to_columns` and a hash protect: keys are unique, strings
    are checked when they are read, and the numbers of a large set are not. num_groups: as recorded in that file.
    Errors: DataError naming `where`.
    """
    keys = unpack_strings("keys", columns, num, where)
    groups = unpack_strings("groups", columns, num, where)
    for column in (keys, groups):
        if column is not None and not is_ours:
            column.check()
    if keys is None:
        keys = pack(f"{i:0{max(6, len(str(num)))}d}" for i in range(num))
    rows = make_rows(
        keys,
        groups=groups,
        labels=columns.get("labels"),
        origins=columns.get("origins"),
        variants=columns.get("variants"),
        similarity=columns.get("similarity"),
        where=where,
        is_ours=is_ours,
    )
    return rows if num_groups is None else replace(rows, num_groups=num_groups)


def pack_strings(name: str, column: Strings) -> Columns:
    """Return a column of N strings as `<name>.bytes` uint8 and `<name>.offsets` int64 [N + 1]."""
    data, offsets = to_arrays(column)
    return {f"{name}.bytes": data, f"{name}.offsets": offsets}


def unpack_strings(name: str, columns: Mapping[str, np.ndarray], num: int, where: object) -> PackedStrings | None:
    """Return the strings of a column; None if there is no such column. Errors: DataError naming `where`."""
    if f"{name}.bytes" not in columns or f"{name}.offsets" not in columns:
        return None
    data, offsets = columns[f"{name}.bytes"], columns[f"{name}.offsets"]
    fits = offsets.shape == (num + 1,) and offsets.dtype.kind in "iu" and (data.dtype, data.ndim) == (np.uint8, 1)
    if not fits or offsets[0] != 0 or offsets[-1] != len(data):
        raise DataError(f"the {name} column does not fit {num} images", where=where, hint="the file is damaged")
    return PackedStrings(data, offsets[:-1], offsets[1:], name=name, where=where)
