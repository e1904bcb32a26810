"""Arrays in files, memory-mapped. A block is checked against its hash when it is first read in a process."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from corecli.base.blocks import HASH_BYTES, block_hash, hashes_name, num_blocks, rows_per_block
from corecli.base.errors import DataError
from corecli.base.layout import Index

TYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32}
SHORT_BYTES = 1 << 22  # shorter columns are read as a whole
_DAMAGED = "the file is damaged; make or copy it again"


class Hashes(Protocol):
    """What is known about the content of an array, block by block."""

    @property
    def rows_per_block(self) -> int: ...

    def match(self, block: int, data: memoryview) -> bool:
        """Whether a block with these bytes is intact."""
        ...


@dataclass(frozen=True, eq=False)
class BlockHashes:
    """The hashes of `base.blocks`: `table` is uint8 [number of blocks, HASH_BYTES]."""

    table: np.ndarray
    rows_per_block: int

    def match(self, block: int, data: memoryview) -> bool:
        """Whether a block with these bytes is intact."""
        return block_hash(data) == self.table[block].tobytes()


@dataclass(frozen=True)
class Crc32:
    """The CRC-32 of some bytes `before` the array and of the whole array, which is one block."""

    value: int
    before: bytes
    rows_per_block: int

    def match(self, block: int, data: memoryview) -> bool:
        """Whether the array is intact."""
        return zlib.crc32(data, zlib.crc32(self.before)) == self.value


class MappedArray:
    """An array of `shape` at byte `offset` of a file. All processes share its pages.

    `name` describes it in errors, and `hint` says what to do about damage. Before every read the file is checked for
    truncation, because reading a page that is no longer there kills the process with SIGBUS.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        dtype: Any,
        shape: Sequence[int],
        offset: int,
        hashes: Hashes | None = None,
        hint: str = _DAMAGED,
    ) -> None:
        self.path, self.name, self.dtype, self.shape = Path(path).absolute(), name, np.dtype(dtype), tuple(shape)
        self._offset, self._hashes, self._hint = offset, hashes, hint
        self._map()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return self._end - self._offset

    def take(self, rows: np.ndarray, axis: Literal[0] = 0) -> np.ndarray:
        """Return the given rows as an array of their own. Errors: DataError if one is damaged or no longer there."""
        self._check_size()
        if self._num_unseen:
            self._check_blocks(rows // self._rows_per_block)
        return self._array.take(rows, axis)  # as fast as torch.index_select; fancy indexing is slower

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return a range of rows, by default all, as an array of their own. Errors: as `take`."""
        return self.view(start, len(self) if stop is None else stop).copy()

    def view(self, start: int, stop: int) -> np.ndarray:
        """Return a range of rows as a read-only array in the pages of the file. Errors: as `take`."""
        self._check_size()
        if self._num_unseen and start < stop:
            self._check_blocks(np.arange(start // self._rows_per_block, (stop - 1) // self._rows_per_block + 1))
        return self._array[start:stop]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the place of the array, not its content; another process checks the blocks that it reads itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_array", "_seen")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the file again."""
        self.__dict__.update(state)
        self._map()

    def _map(self) -> None:
        num = int(np.prod(self.shape, dtype=np.int64))
        self._end = self._offset + num * self.dtype.itemsize
        with open(self.path, "rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._check_size()
        flat = np.frombuffer(self._file, self.dtype, num, self._offset) if num else np.zeros(0, self.dtype)
        self._array = flat.reshape(self.shape)
        self._rows_per_block = self._hashes.rows_per_block if self._hashes else max(1, len(self))
        self._seen = np.zeros(-(-len(self) // self._rows_per_block), dtype=bool)
        self._num_unseen = len(self._seen) if self._hashes else 0

    def _check_size(self) -> None:
        if self._file.size() < self._end:  # asks the system
            hint = "another program has changed it; make or copy it again"
            raise DataError("truncated since it was opened", where=self.path, hint=hint)

    def _check_blocks(self, blocks: np.ndarray) -> None:
        assert self._hashes is not None
        for block in np.unique(blocks[~self._seen[blocks]]).tolist():
            first, end = block * self._rows_per_block, min((block + 1) * self._rows_per_block, len(self))
            if not self._hashes.match(block, self._array[first:end].reshape(-1).view(np.uint8).data):
                reason = f"{self.name} {first} to {end - 1} do not match their hash"
                raise DataError(reason, where=self.path, hint=self._hint)
            self._seen[block] = True
        self._num_unseen = len(self._seen) - int(np.count_nonzero(self._seen))


class MappedColumn(NDArrayOperatorsMixin):
    """Rows `start` to `stop` of a memory-mapped array, which are used like a read-only NumPy array.

    Rows that are picked are an array; only their blocks are checked. A slice is another `MappedColumn` and reads
    nothing. Whatever else is done, such as `column.max()`, `column == 3` or `np.diff(column)`, checks all rows first.
    Torch accepts only `np.asarray(column)`. Errors: as `MappedArray.take`.
    """

    def __init__(self, array: MappedArray, start: int = 0, stop: int | None = None) -> None:
        self._array, self._start, self._stop = array, start, len(array) if stop is None else stop
        self.dtype, self.ndim, self.itemsize = array.dtype, len(array.shape), array.dtype.itemsize
        self.shape = (self._stop - start, *array.shape[1:])
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.step in (None, 1):
            first, end, _ = index.indices(len(self))
            return MappedColumn(self._array, self._start + first, self._start + max(first, end))
        if isinstance(index, int | np.integer):
            return self._picked(np.array([index], dtype=np.int64))[0]
        if isinstance(index, np.ndarray) and index.dtype.kind in "iu":
            return self._picked(index)
        return self._all()[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._all(), dtype=dtype, copy=True) if copy else np.asarray(self._all(), dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [value._all() if isinstance(value, MappedColumn) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def __getattr__(self, name: str) -> Any:
        """Return a method of an array, such as `max`, `tolist` or `astype`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._all(), name)

    def _all(self) -> np.ndarray:
        return self._array.view(self._start, self._stop)

    def _picked(self, rows: np.ndarray) -> np.ndarray:
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            if rows.min() < -len(self) or rows.max() >= len(self):
                raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
            rows = np.where(rows < 0, rows + len(self), rows)
        return self._array.take(rows.astype(np.int64, copy=False) + self._start)


def open_column(path: Path, index: Index, name: str, *, start: int, hint: str = _DAMAGED) -> np.ndarray:
    """Return a tensor as `map_tensor` finds it: read and checked if it is short, else a `MappedColumn`."""
    array = map_tensor(path, index, name, start=start, hint=hint)
    is_aligned = (start + index[name]["data_offsets"][0]) % array.dtype.itemsize == 0
    return cast(np.ndarray, MappedColumn(array)) if array.nbytes > SHORT_BYTES and is_aligned else array.read()


def map_tensor(path: Path, index: Index, name: str, *, start: int, hint: str = _DAMAGED) -> MappedArray:
    """Map a tensor of a safetensors file whose data begin at byte `start`, with its hashes if there are any.

    Errors: DataError if the entry does not fit its bytes, or its hashes do not fit the entry.
    """
    entry = index[name]
    dtype, shape, (begin, end) = np.dtype(TYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if end - begin != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise DataError("the shape of a tensor does not fit its bytes", where=path, hint="the file is damaged")
    hashes = _read_hashes(path, index, name, start) if shape else None
    described = "images" if name == "images" else f"values of {name}"
    return MappedArray(path, name=described, dtype=dtype, shape=shape, offset=start + begin, hashes=hashes, hint=hint)


def _read_hashes(path: Path, index: Index, name: str, start: int) -> BlockHashes | None:
    entry, hashed = index.get(hashes_name(name)), index[name]
    if entry is None:
        return None
    shape, item_bytes = hashed["shape"], np.dtype(TYPES[hashed["dtype"]]).itemsize
    wanted, (begin, end) = [num_blocks(shape, item_bytes), HASH_BYTES], entry["data_offsets"]
    if entry["dtype"] != "U8" or entry["shape"] != wanted or end - begin != wanted[0] * wanted[1]:
        raise DataError(f"the hashes of {name} do not fit it", where=path, hint="the file is damaged")
    with open(path, "rb") as file:
        file.seek(start + begin)
        table = np.frombuffer(file.read(end - begin), dtype=np.uint8).reshape(wanted)
    return BlockHashes(table, rows_per_block(shape, item_bytes))
