"""Read the classes of images that have several, as in VOC: lines `KEY<TAB>CLASS;CLASS...[<TAB>CLASS;...]`.

The optional third column has the classes that are difficult to see in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corecli.base.documents import read_text
from corecli.base.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ClassLists:
    """The sorted names of all classes, and by key the numbers of an image's classes and of its difficult classes."""

    path: Path
    names: tuple[str, ...]
    own: dict[str, list[int]]
    difficult: dict[str, list[int]]

    def targets(self, keys: Sequence[str]) -> np.ndarray:
        """Return int8 [N, C]: 1 for a class of the image, 0 for other classes, -1 for a difficult one."""
        found = np.zeros((len(keys), len(self.names)), dtype=np.int8)
        for row, key in enumerate(keys):
            found[row, self.difficult[key]] = -1
            found[row, self.own[key]] = 1
        return found


def read_class_lists(path: Path) -> ClassLists:
    """Read a file of class lists. Errors: MissingInputError; DataError that names a malformed or repeated line."""
    lists: dict[str, tuple[list[str], list[str]]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        key, *columns = line.split("\t")
        if len(columns) not in (1, 2) or not key:
            raise DataError(f"line {number} is not KEY<TAB>CLASS;...[<TAB>CLASS;...]", where=path)
        if key in lists:
            raise DataError(f"line {number} repeats the key {key!r}", where=path)
        own, difficult = ([c for c in column.split(";") if c] for column in (*columns, "")[:2])
        lists[key] = own, difficult
    names = tuple(sorted({name for both in lists.values() for part in both for name in part}))
    if len(names) < 2:
        plural = "1 class" if names else "no classes"
        raise DataError(f"names {plural}", where=path, hint="a probe needs at least two")
    number_of = {name: number for number, name in enumerate(names)}
    return ClassLists(
        path=path,
        names=names,
        own={key: [number_of[name] for name in own] for key, (own, _) in lists.items()},
        difficult={key: [number_of[name] for name in rest] for key, (_, rest) in lists.items()},
    )
