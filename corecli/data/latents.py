"""Latents of an image set: encoded once, kept in one file, and read like the images.

The safetensors file has `moments` float16 [N, V, K, h, w]: the output of the first stage's `encode` for each row and,
if V = 2, for its mirror image. Training draws a new sample from them at every step. The file records the fingerprints
of the image set and of the first stage, so it is never used for others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corecli import __version__
from corecli.base.blocks import HASH_BYTES, BlockHasher, hashes_name, num_blocks
from corecli.base.checkpoint import FORMAT_VERSION, require_header, tensor_head
from corecli.base.errors import DataError
from corecli.base.files import atomic_write
from corecli.base.layout import Index, data_start, make_head, read_index
from corecli.data.imageset import StoredSet
from corecli.data.mapped import MappedArray, map_tensor
from corecli.data.pixels import digest
from corecli.data.rows import Places, Rows

KIND = "latents"
_NAME = "moments"
_UNKNOWN = "0" * 64
_OTHER = {"images": "other images", "first_stage": "another first stage", "mirrored": "another use of mirror images"}


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSet:
    """An image set whose `read` returns moments, float16 [B, V, K, h, w], instead of images."""

    images: StoredSet
    path: Path

    @property
    def rows(self) -> Rows:
        """As in the image set."""
        return self.images.rows

    @property
    def class_names(self) -> tuple[str, ...]:
        """As in the image set."""
        return self.images.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images, not of the latents."""
        return self.images.image_size

    @property
    def decodes(self) -> bool:
        """False: the file is memory-mapped."""
        return False

    @property
    def slots(self) -> Places:
        """As in the image set."""
        return self.images.slots

    @property
    def segments(self) -> tuple[int, ...]:
        """As in the image set."""
        return self.images.segments

    @property
    def guard(self) -> bool:
        """As in the image set."""
        return self.images.guard

    @property
    def bad(self) -> tuple[str, ...]:
        """As in the image set."""
        return self.images.bad

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the images; users of the latents record that of the first stage."""
        return self.images.fingerprint

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the moments of the given rows, float16."""
        return self._mapped.take(np.asarray(indices, dtype=np.int64))

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the moments of the given rows, float16."""
        return torch.from_numpy(self.read_array(indices))

    @cached_property
    def _mapped(self) -> MappedArray:
        return map_tensor(self.path, read_index(self.path), _NAME, start=data_start(self.path))


def file_name(images: StoredSet, *, first_stage: str, mirrored: bool) -> str:
    """Return the file name for the latents of a set, a hash of everything they depend on."""
    return f"latents-{digest(images.fingerprint, first_stage, str(mirrored))[:16]}.safetensors"


def open_latents(path: Path, images: StoredSet, *, first_stage: str, mirrored: bool) -> LatentSet:
    """Open the latents of `images` that `write_latents` made with the first stage of that fingerprint.

    The content is memory-mapped; each block of it is checked when it is first read. Errors: MissingInputError;
    DataError if the file is truncated, or belongs to other images, another first stage, or has no mirror images.
    """
    header, wanted = require_header(path, kind=KIND), _identity(images, first_stage, mirrored)
    for name, value in wanted.items():
        if header.get(name) != value:
            raise DataError(f"the latents were made for {_OTHER[name]}", where=path, hint="remove the file")
    shape = read_index(path)[_NAME]["shape"]
    if shape[0] != len(images.rows):
        raise DataError(f"{shape[0]} latents for {len(images.rows)} images", where=path, hint="remove the file")
    return LatentSet(images=images, path=path)


def write_latents(
    path: Path, images: StoredSet, chunks: Iterable[torch.Tensor], *, first_stage: str, mirrored: bool
) -> None:
    """Write moments, float16 [n, V, K, h, w] in the order of the rows, with one chunk in memory at a time.

    Errors: CannotCreateError, StorageError.
    """
    header = {
        "kind": KIND,
        "format": FORMAT_VERSION,
        "corecli": __version__,
        **_identity(images, first_stage, mirrored),
    }
    stream = iter(chunks)
    first = next(stream)
    shape = (len(images.rows), *first.shape[1:])
    hashed, blocks = hashlib.sha256(tensor_head(_NAME, "torch.float16", shape)), BlockHasher(shape, 2)
    written, index = 0, _index(shape)
    with atomic_write(path) as file:
        file.write(make_head(index, {**header, "fingerprint": _UNKNOWN}))
        place = file.tell()
        file.write(bytes(index[hashes_name(_NAME)]["data_offsets"][1]))
        for chunk in chain([first], stream):
            assert (chunk.dtype, chunk.shape[1:]) == (torch.float16, shape[1:]), "chunks differ"
            data = chunk.contiguous().numpy(force=True).reshape(-1).data
            file.write(data)
            hashed.update(data)
            blocks.update(data)
            written += len(chunk)
        assert written == len(images.rows), f"{written} latents for {len(images.rows)} rows"
        file.seek(place)
        file.write(blocks.table().tobytes())
        file.seek(0)
        file.write(make_head(index, {**header, "fingerprint": hashed.hexdigest()}))  # of the same length


def _identity(images: StoredSet, first_stage: str, mirrored: bool) -> dict[str, Any]:
    return {"images": images.fingerprint, "first_stage": first_stage, "mirrored": mirrored}


def _index(shape: tuple[int, ...]) -> Index:
    table = [num_blocks(shape, 2), HASH_BYTES]
    end = math.prod(table)
    return {
        hashes_name(_NAME): {"dtype": "U8", "shape": table, "data_offsets": [0, end]},
        _NAME: {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + 2 * math.prod(shape)]},
    }
