"""Latents of an image set, encoded once: a packed file that is read like the images it stands for.

One safetensors file holds `moments` float16 [N, V, K, h, w]: for every row what a first stage's `encode` gives, of the
image and, with V = 2, of its mirror image; training takes a new sample of them every step. It is known by the
fingerprints of the image set and of the first stage, so it never stands for others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corecli import __version__
from corecli.base.checkpoint import FORMAT_VERSION, HEADER_KEY, read_safetensors_index, require_header
from corecli.base.errors import DataError
from corecli.base.files import atomic_write
from corecli.data.imageset import ImageSet
from corecli.data.pixels import digest
from corecli.data.rows import Rows

KIND = "latents"
_NAME = "moments"
_UNKNOWN = "0" * 64


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSet:
    """An image set whose `read` gives moments, float16 [B, V, K, h, w], in the place of images."""

    images: ImageSet
    path: Path

    @property
    def rows(self) -> Rows:
        """Those of the images."""
        return self.images.rows

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the images."""
        return self.images.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images, not of their latents."""
        return self.images.image_size

    @property
    def decodes(self) -> bool:
        """False: the file is mapped."""
        return False

    @property
    def slots(self) -> np.ndarray:
        """Those of the images."""
        return self.images.slots

    @property
    def segments(self) -> tuple[int, ...]:
        """Those of the images."""
        return self.images.segments

    @property
    def guard(self) -> bool:
        """That of the images."""
        return self.images.guard

    @property
    def bad(self) -> tuple[str, ...]:
        """Those of the images."""
        return self.images.bad

    @property
    def fingerprint(self) -> str:
        """That of the images: latents are a function of them and of the first stage, which is known elsewhere."""
        return self.images.fingerprint

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the moments of the given rows, float16."""
        return self._mapped[np.asarray(indices, dtype=np.int64)]

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the moments of the given rows, float16."""
        return torch.from_numpy(self.read_array(indices))

    @cached_property
    def _mapped(self) -> np.ndarray:
        entry = read_safetensors_index(self.path)[_NAME]
        with open(self.path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        return np.memmap(self.path, dtype=np.float16, mode="r", offset=start, shape=tuple(entry["shape"]))


def file_name(images: ImageSet, *, first_stage: str, mirrored: bool) -> str:
    """What the latents of a set are called in a folder: a hash of what they are a function of."""
    return f"latents-{digest(images.fingerprint, first_stage, str(mirrored))[:16]}.safetensors"


def open_latents(path: Path, images: ImageSet, *, first_stage: str, mirrored: bool) -> LatentSet:
    """The latents of `images` in a file that `write_latents` made of them with the first stage of that fingerprint.

    Its content is mapped and not read, so its hash is not verified. Errors: MissingInputError; DataError when it is
    truncated, or of other images, of another first stage or without the mirror images.
    """
    header, wanted = require_header(path, kind=KIND), _identity(images, first_stage, mirrored)
    for name, value in wanted.items():
        if header.get(name) != value:
            raise DataError(f"latents of another {name.replace('_', ' ')}", where=path, hint="remove it")
    shape = read_safetensors_index(path)[_NAME]["shape"]
    if shape[0] != len(images.rows):
        raise DataError(f"{shape[0]} latents for {len(images.rows)} images", where=path, hint="remove it")
    return LatentSet(images=images, path=path)


def write_latents(
    path: Path, images: ImageSet, chunks: Iterable[torch.Tensor], *, first_stage: str, mirrored: bool
) -> None:
    """Write moments, float16 [n, V, K, h, w] tensors in the order of the set's rows, one chunk in memory at a time.

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
    hashed = hashlib.sha256(json.dumps([_NAME, "torch.float16", list(shape)]).encode())
    written = 0
    with atomic_write(path) as file:
        file.write(_head(shape, {**header, "fingerprint": _UNKNOWN}))
        for chunk in chain([first], stream):
            assert (chunk.dtype, chunk.shape[1:]) == (torch.float16, shape[1:]), "chunks differ"
            data = chunk.contiguous().numpy(force=True).reshape(-1).data
            file.write(data)
            hashed.update(data)
            written += len(chunk)
        assert written == len(images.rows), f"{written} latents for {len(images.rows)} rows"
        file.seek(0)
        file.write(_head(shape, {**header, "fingerprint": hashed.hexdigest()}))  # of the same length


def _identity(images: ImageSet, first_stage: str, mirrored: bool) -> dict[str, Any]:
    return {"images": images.fingerprint, "first_stage": first_stage, "mirrored": mirrored}


def _head(shape: tuple[int, ...], header: dict[str, Any]) -> bytes:
    size = 2 * int(np.prod(shape, dtype=np.int64))
    index = {
        "__metadata__": {HEADER_KEY: json.dumps(header, sort_keys=True)},
        _NAME: {"dtype": "F16", "shape": list(shape), "data_offsets": [0, size]},
    }
    text = json.dumps(index).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
