"""Convert rows to plain numeric arrays and back. The packed and npz formats store these.

A column of strings is stored as UTF-8 bytes and offsets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from corecli.base.errors import DataError
from corecli.data.rows import Rows, make_rows

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


def from_columns(columns: Mapping[str, np.ndarray], *, num: int, where: object) -> Rows:
    """Return the rows of a set of `num` images; this is the inverse of `to_columns`.

    Files of other tools may have any subset of the columns. Missing keys are row numbers; the other defaults follow
    from the keys. Errors: DataError naming `where`.
    """
    keys = unpack_strings("keys", columns, num, where)
    groups = unpack_strings("groups", columns, num, where)
    return make_rows(
        keys if keys is not None else [f"{i:0{max(6, len(str(num)))}d}" for i in range(num)],
        groups=keys if keys == groups else groups,  # one list of strings, not two, where every image is its own group
        labels=columns.get("labels"),
        origins=columns.get("origins"),
        variants=columns.get("variants"),
        similarity=columns.get("similarity"),
        where=where,
    )


def pack_strings(name: str, strings: list[str]) -> Columns:
    """Return a column of N strings as `<name>.bytes` uint8 and `<name>.offsets` int64 [N + 1]."""
    encoded = [s.encode() for s in strings]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(e) for e in encoded], out=offsets[1:])
    return {f"{name}.bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}.offsets": offsets}


def unpack_strings(name: str, columns: Mapping[str, np.ndarray], num: int, where: object) -> list[str] | None:
    """Return the strings of a column; None if there is no such column. Errors: DataError naming `where`."""
    if f"{name}.bytes" not in columns or f"{name}.offsets" not in columns:
        return None
    data, offsets = columns[f"{name}.bytes"].tobytes(), columns[f"{name}.offsets"]
    if offsets.shape != (num + 1,) or offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
        raise DataError(f"the {name} column does not fit {num} images", where=where, hint="the file is damaged")
    ends = offsets.tolist()
    try:
        text = data.decode()
        source = text if len(text) == len(data) else None  # pure ASCII: characters are bytes
        pieces = zip(ends[:-1], ends[1:], strict=True)
        return [source[a:b] for a, b in pieces] if source is not None else [data[a:b].decode() for a, b in pieces]
    except UnicodeDecodeError as error:
        raise DataError(f"the {name} column is not UTF-8", where=where, hint="the file is damaged") from error
