"""The pixels of a set: one array, in memory or memory-mapped, or encoded images that are decoded when read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from corecli.base.errors import CorecliError, DataError
from corecli.data.decode import Fit, decode, fit_array, square
from corecli.data.mapped import MappedArray
from corecli.data.pictures import ArrayPicture, Picture, open_picture
from corecli.data.rows import Rows
from corecli.data.strings import digest_strings

if TYPE_CHECKING:
    import torch
    from PIL import Image

OnBad = Literal["fail", "skip"]
MAX_BAD_FRACTION = 0.1
MIXED_HINT = "--image-size N resizes and crops all to N x N"
_NUM_COMPARED = 64  # files whose sizes decide whether a set has images of one size


class Pixels(Protocol):
    """Random access to the images of a set by row number."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first image, and of every other one unless `is_mixed`."""
        ...

    @property
    def is_mixed(self) -> bool:
        """Whether images of different sizes were found."""
        ...

    @property
    def decodes(self) -> bool:
        """Whether `read` decodes or resizes."""
        ...

    def identity(self) -> str:
        """Return a string that identifies the pixels without reading them."""
        ...

    def fitted(self, fit: Fit) -> Pixels:
        """Return the same images, resized and cropped to one size when they are read."""
        ...

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], as an array of their own."""
        ...

    def picture(self, row: int) -> Picture:
        """Return one image of any size, to be decoded later."""
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


@runtime_checkable
class Sized(Protocol):
    """A store that knows the sizes of all images."""

    def have_one_size(self) -> bool:
        """Whether all images have the same size."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainSet:
    """An ImageSet that shows each of its rows once per epoch."""

    rows: Rows
    pixels: Pixels
    class_names: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    guard: bool = False
    known_fingerprint: str | None = None  # if a file records it

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first image, and of every other one unless `is_mixed`."""
        return self.pixels.image_size

    @property
    def is_mixed(self) -> bool:
        """Whether images of different sizes were found."""
        return self.pixels.is_mixed

    @property
    def decodes(self) -> bool:
        """Whether `read` decodes or resizes."""
        return self.pixels.decodes

    @property
    def slots(self) -> range:
        """Every row once."""
        return range(len(self.rows))

    @property
    def segments(self) -> tuple[int, ...]:
        """One segment with all slots."""
        return (len(self.rows),)

    @property
    def fingerprint(self) -> str:
        """A hash of the identity of the pixels and of the keys."""
        return self.known_fingerprint or self.computed_fingerprint

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W]; does not import torch."""
        return self.pixels.read_array(np.asarray(indices, dtype=np.int64))

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """Return the images of the given rows, uint8 [B, 3, H, W]."""
        import torch

        return torch.from_numpy(self.read_array(indices))

    def picture(self, row: int) -> Picture:
        """Return one image of any size, to be decoded later."""
        return self.pixels.picture(row)

    def fitted(self, fit: Fit) -> PlainSet:
        """Return the set with images that are resized and cropped to one size when they are read."""
        return replace(self, pixels=self.pixels.fitted(fit))

    @cached_property
    def computed_fingerprint(self) -> str:
        """The fingerprint, computed from all keys."""
        return digest_strings(self.pixels.identity(), self.rows.keys)


def digest(*parts: str) -> str:
    """Return the SHA-256 of some strings in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def identity_of(content: str, resize: int | None) -> str:
    """Return the identity of pixels: that of their content, and of how they are resized."""
    return f"{content} {resize}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPixels:
    """Pixels in one uint8 array: `[N, 3, H, W]`, or `[N, H, W, 3]` in layout NHWC.

    A memory-mapped array stays on disk, and all processes share its pages.
    """

    array: np.ndarray | MappedArray
    content: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    resize: int | None = None
    fit: Fit | None = None

    def __len__(self) -> int:
        return len(self.array)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return _side(self.resize, self.fit) or self._stored_size

    @property
    def is_mixed(self) -> bool:
        """False: an array has images of one size."""
        return False

    @property
    def decodes(self) -> bool:
        """Whether images are resized when they are read."""
        return self.image_size != self._stored_size

    def identity(self) -> str:
        """Return the identity of the content and of the resizing."""
        return identity_of(self.content, self.resize)

    def fitted(self, fit: Fit) -> ArrayPixels:
        """Return the same images, resized and cropped when they are read."""
        return replace(self, fit=fit)

    def picture(self, row: int) -> ArrayPicture:
        """Return one image."""
        return ArrayPicture(array=self.read_array(np.array([row]))[0])

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], as a copy. Errors: DataError for damaged ones."""
        images = self.array.take(indices, axis=0)
        if self.layout == "NHWC":
            images = images.transpose(0, 3, 1, 2)
        if self.decodes:
            for fit in _fits(self.resize, self.fit):
                images = fit_array(images, fit)
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
    fit: Fit | None = None
    decodes: bool = True

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the first image, or the size to which all images are resized."""
        return _side(self.resize, self.fit) or self._first_size

    @property
    def is_mixed(self) -> bool:
        """Whether images differ in size, as the index of the store states; else any of 64 evenly spaced ones."""
        return not _fits(self.resize, self.fit) and self._sizes_differ

    def identity(self) -> str:
        """Return the identity of these images and of the resizing."""
        return f"{self.store.identity(self.positions.tolist())} {self.resize}"

    def fitted(self, fit: Fit) -> EncodedPixels:
        """Return the same images, resized and cropped when they are read."""
        return replace(self, fit=fit)

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
        return decode(self.store.fetch(position), name=self.store.name(position), fits=_fits(self.resize, self.fit))

    def picture(self, row: int) -> Picture:
        """Return one image, resized and cropped if the set says so, else as it is. Errors: as `read_one`."""
        if _fits(self.resize, self.fit):
            return ArrayPicture(array=self.read_one(row))
        position = int(self.positions[row])
        return open_picture(self.store.fetch(position), name=self.store.name(position))

    def failures(self) -> list[str | None]:
        """Decode every image once; return for each row None, or why it cannot be read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._failure, range(len(self.positions))))

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        return self.picture(0).size

    @cached_property
    def _sizes_differ(self) -> bool:
        if isinstance(self.store, Sized):
            return not self.store.have_one_size()
        compared = np.linspace(0, len(self.positions) - 1, min(_NUM_COMPARED, len(self.positions))).astype(int)
        return any(self.picture(row).size != self._first_size for row in compared.tolist())

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
        return DataError(reason, hint=MIXED_HINT)


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
    if not bad:
        return image_set
    return replace(image_set, rows=image_set.rows.take(good), pixels=kept, bad=bad, known_fingerprint=None)


def sizes_identity(sizes: Iterable[int]) -> str:
    """Return a hash of file sizes in bytes, without times, so that a copy has the same one."""
    return digest(*(str(size) for size in sizes))


def _fits(resize: int | None, fit: Fit | None) -> tuple[Fit, ...]:
    """Return the steps that bring images to one size: those of --image-size, then those of an encoder."""
    return (*([] if resize is None else [square(resize)]), *([] if fit is None else [fit]))


def _side(resize: int | None, fit: Fit | None) -> tuple[int, int] | None:
    fits = _fits(resize, fit)
    return (fits[-1].crop, fits[-1].crop) if fits else None
