"""Where a set keeps its pixels: in one array, in memory or mapped from a file, or in encoded images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from corecli.base.errors import CorecliError, DataError
from corecli.data.decode import decode, resize_crop
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
        """True when `read` decodes or resizes."""
        ...

    def identity(self) -> str:
        """What tells these pixels from others without reading them."""
        ...

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], as an array of their own."""
        ...


class Store(Protocol):
    """Encoded images by position."""

    def name(self, position: int) -> str:
        """What errors call the image."""
        ...

    def fetch(self, position: int) -> bytes | Image.Image:
        """The image, encoded or as Pillow has it."""
        ...

    def identity(self, positions: Sequence[int]) -> str:
        """What tells these images from others, cheaply."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainSet:
    """An ImageSet that shows each of its rows once an epoch; `pixels` knows where they are kept."""

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
        """True when `read` decodes or resizes."""
        return self.pixels.decodes

    @property
    def slots(self) -> np.ndarray:
        """int64 [N]: every row once."""
        return self._every_row

    @property
    def segments(self) -> tuple[int, ...]:
        """One segment."""
        return (len(self.rows),)

    @property
    def fingerprint(self) -> str:
        """The hash of the pixels' identity and the keys."""
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
    """The sha256 of some strings, in hex."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayPixels:
    """Pixels in one uint8 array, `[N, 3, H, W]` or, in layout NHWC, `[N, H, W, 3]`.

    A read-only memory map stays on disk and its pages are shared by all processes. (A private map, which torch
    would need in order to index it without a warning, is refused by Linux once the file is larger than memory.)
    """

    array: np.ndarray
    content: str
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    resize: int | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image."""
        return (self.resize, self.resize) if self.resize else self._stored_size

    @property
    def decodes(self) -> bool:
        """True when images are resized on the fly."""
        return self.image_size != self._stored_size

    def identity(self) -> str:
        """The content's identity and the resizing."""
        return f"{self.content} {self.resize}"

    def read_array(self, indices: np.ndarray) -> np.ndarray:
        """Return the images of the given rows, uint8 [B, 3, H, W], as a copy."""
        images = np.asarray(self.array).take(indices, axis=0)  # as fast as torch.index_select; fancy indexing is slower
        if self.layout == "NHWC":
            images = images.transpose(0, 3, 1, 2)
        if self.decodes:
            images = resize_array(images, self.image_size[0])
        return np.ascontiguousarray(images)

    def __getstate__(self) -> dict[str, Any]:
        """A memory map travels to a worker process by name, not by value."""
        state = dict(self.__dict__)
        if isinstance(self.array, np.memmap):
            state["array"] = (self.array.filename, self.array.offset, self.array.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the file again."""
        if isinstance(state["array"], tuple):
            filename, offset, shape = state["array"]
            state["array"] = np.memmap(filename, dtype=np.uint8, mode="r", offset=offset, shape=shape)
        self.__dict__.update(state)

    @property
    def _stored_size(self) -> tuple[int, int]:
        height, width = self.array.shape[2:] if self.layout == "NCHW" else self.array.shape[1:3]
        return int(height), int(width)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPixels:
    """Image files of a `store`, decoded when read; row i is at `positions[i]`.

    Without `resize` every image must have the size of the first.
    """

    store: Store
    positions: np.ndarray
    resize: int | None = None
    decodes: bool = True

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W): the first image's, or the size all are resized to."""
        return (self.resize, self.resize) if self.resize else self._first_size

    def identity(self) -> str:
        """The store's identity of these images and the resizing."""
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
        """An image of whatever size it has: uint8 [3, H, W]. Errors: DataError naming a bad file."""
        position = int(self.positions[row])
        return decode(self.store.fetch(position), name=self.store.name(position), image_size=self.resize)

    def complaints(self) -> list[str | None]:
        """Decode everything once: for each row None, or why it cannot be read."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._complaint, range(len(self.positions))))

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        height, width = self.read_one(0).shape[1:]
        return int(height), int(width)

    def _complaint(self, row: int) -> str | None:
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
    """With `on_bad="skip"`, `image_set` without the images that cannot be decoded, which `bad` then lists.

    Errors: DataError when they are more than MAX_BAD_FRACTION of the set: then the set, not an image, is bad.
    """
    if on_bad == "fail":
        return image_set
    complaints = pixels.complaints()
    bad = tuple(line for line in complaints if line is not None)
    if len(bad) > MAX_BAD_FRACTION * len(complaints):
        reason = (
            f"{len(bad)} of {len(complaints)} images are bad, more than {MAX_BAD_FRACTION:.0%}; the first: {bad[0]}"
        )
        raise DataError(reason, where=where)
    good = np.array([i for i, line in enumerate(complaints) if line is None], dtype=np.int64)
    kept = replace(pixels, positions=pixels.positions[good])
    return replace(image_set, rows=image_set.rows.take(good), pixels=kept, bad=bad)


def sizes_identity(sizes: Iterable[int]) -> str:
    """The identity of files known by their sizes in bytes; no times, so that a copy is the same."""
    return digest(*(str(size) for size in sizes))


def resize_array(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, 3, H, W] with the shorter side resized to `size` and the center cropped: [N, 3, size, size]."""
    from PIL import Image

    resized = (resize_crop(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), size) for image in images)
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in resized])
