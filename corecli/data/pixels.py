"""The pixels of a set: one array, in memory or memory-mapped, or encoded images that are decoded when read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from corecli.base.errors import CorecliError, DataError
from corecli.data.decode import decode, resize_crop
from corecli.data.mapped import MappedArray
from corecli.data.rows import Rows

if TYPE_CHECKING:
    import torch
    from PIL import Image

OnBad = Literal["fail", "skip"]
MAX_BAD_FRACTION = 0.1


class Pixels(Protocol):
    """Random access to the images of a set by row number."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        ...

    @property
    def decodes(self) -> bool:
        """Whether `read` decodes or resizes."""
        ...

    def identity(self) -> str:
        """Return a string that identifies the pixels without reading them."""
        ...

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], as an array of their own."""
        ...


class Store(Protocol):
    """Encoded images by position."""

    def name(self, position: int) -> str:
        """Return the name of the image for errors."""
        ...

    def fetch(self, position: int) -> bytes | Image.Image:
        """Return the image, encoded or as a Pillow image."""
        ...

    def identity(self, positions: Sequence[int]) -> str:
        """Return a string that identifies these images without reading them."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainSet:
    """An ImageSet that shows each of its rows once per epoch."""

    rows: Rows
    pixels: Pixels
    class_names: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    guard: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return self.pixels.image_size

    @property
    def decodes(self) -> bool:
        """Whether `read` decodes or resizes."""
        return self.pixels.decodes

    @property
    def slots(self) -> np.ndarray:
        """int64 [N]: every row once."""
        return self._every_row

    @property
    def segments(self) -> tuple[int, ...]:
        """One segment with all slots."""
        return (len(self.rows),)

    @property
    def fingerprint(self) -> str:
        """A hash of the identity of the pixels and of the keys."""
        return digest(self.pixels.identity(), *self.rows.keys)

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W]; does not import torch."""
        return self.pixels.read_array(np.asarray(indices, dtype=np.int64))

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images of the given rows, uint8 [B, 3, H, W]."""
        import torch

        return torch.from_numpy(self.read_array(indices))

    @cached_property
    def _every_row(self) -> np.ndarray:
        return np.arange(len(self.rows), dtype=np.int64)


def digest(*parts: str) -> str:
    """Return the SHA-256 of some strings in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPixels:
    """Pixels in one uint8 array: `[N, 3, H, W]`, or `[N, H, W, 3]` in layout NHWC.

    A memory-mapped array stays on disk, and all processes share its pages.
    """

    array: np.ndarray | MappedArray
    content: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    resize: int | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return (self.resize, self.resize) if self.resize else self._stored_size

    @property
    def decodes(self) -> bool:
        """Whether images are resized when they are read."""
        return self.image_size != self._stored_size

    def identity(self) -> str:
        """Return the identity of the content and of the resizing."""
        return f"{self.content} {self.resize}"

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], as a copy. Errors: DataError for damaged ones."""
        images = self.array.take(indices, axis=0)
        if self.layout == "NHWC":
            images = images.transpose(0, 3, 1, 2)
        if self.decodes:
            images = resize_array(images, self.image_size[0])
        return np.ascontiguousarray(images)

    @property
    def _stored_size(self) -> tuple[int, int]:
        height, width = self.array.shape[2:] if self.layout == "NCHW" else self.array.shape[1:3]
        return int(height), int(width)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPixels:
    """Image files of a `store`, decoded when read; row i is at `positions[i]`.

    Without `resize`, every image must have the size of the first.
    """

    store: Store
    positions: np.ndarray
    resize: int | None = None
    decodes: bool = True

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first image, or the size to which all images are resized."""
        return (self.resize, self.resize) if self.resize else self._first_size

    def identity(self) -> str:
        """Return the identity of these images and of the resizing."""
        return f"{self.store.identity(self.positions.tolist())} {self.resize}"

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W].

        Errors: DataError naming a bad file, or two files of different sizes.
        """
        images = [self.read_one(i) for i in indices.tolist()]
        for i, image in zip(indices.tolist(), images, strict=True):
            if image.shape[1:] != self.image_size:
                raise self._mixed_sizes(i, image)
        return np.stack(images) if images else np.empty((0, 3, *self.image_size), dtype=np.uint8)

    def read_one(self, row: int) -> np.ndarray:
        """Return one image of any size as uint8 [3, H, W]. Errors: DataError naming a bad file."""
        position = int(self.positions[row])
        return decode(self.store.fetch(position), name=self.store.name(position), image_size=self.resize)

    def failures(self) -> list[str | None]:
        """Decode every image once; return for each row None, or why it cannot be read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._failure, range(len(self.positions))))

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        height, width = self.read_one(0).shape[1:]
        return int(height), int(width)

    def _failure(self, row: int) -> str | None:
        try:
            self.read_one(row)
        except CorecliError as error:
            return f"{error.where}: {error.reason}"
        return None

    def _mixed_sizes(self, row: int, image: np.ndarray) -> DataError:
        first, other = (self.store.name(int(self.positions[i])) for i in (0, row))
        (height, width), (other_height, other_width) = self.image_size, image.shape[1:]
        reason = f"images differ in size: {first} is {width} x {height}, {other} is {other_width} x {other_height}"
        return DataError(reason, hint="--image-size N resizes and crops all to N x N")


def without_bad(image_set: PlainSet, pixels: EncodedPixels, on_bad: OnBad, where: object) -> PlainSet:
    """With `on_bad="skip"`, return the set without images that cannot be decoded; its `bad` lists them.

    Errors: DataError if more than MAX_BAD_FRACTION of the images cannot be decoded.
    """
    if on_bad == "fail":
        return image_set
    failures = pixels.failures()
    bad = tuple(line for line in failures if line is not None)
    if len(bad) > MAX_BAD_FRACTION * len(failures):
        reason = f"{len(bad)} of {len(failures)} images are bad, more than {MAX_BAD_FRACTION:.0%}; the first: {bad[0]}"
        raise DataError(reason, where=where)
    good = np.array([i for i, line in enumerate(failures) if line is None], dtype=np.int64)
    kept = replace(pixels, positions=pixels.positions[good])
    return replace(image_set, rows=image_set.rows.take(good), pixels=kept, bad=bad)


def sizes_identity(sizes: Iterable[int]) -> str:
    """Return a hash of file sizes in bytes, without times, so that a copy has the same one."""
    return digest(*(str(size) for size in sizes))


def resize_array(images: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side of uint8 [N, 3, H, W] to `size` and crop the center: [N, 3, size, size]."""
    from PIL import Image

    resized = (resize_crop(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), size) for image in images)
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])
