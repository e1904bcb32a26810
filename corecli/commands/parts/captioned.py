"""Captions as a condition of generators: join them to images, and encode them as bytes or with a text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.errors import DataError
from corecli.base.files import sha256_file
from corecli.base.rng import derive
from corecli.data.captions import read_captions
from corecli.data.rows import Rows
from corecli.nets.weights.text_encoders import TextEncoder, check_text_encoder, fingerprint

if TYPE_CHECKING:
    import torch


class Reader:
    """Encodes captions for a generator: as bytes, or as embeddings of the text encoder in a folder.

    length: maximum length of a caption, in bytes or tokens; None for the default. Errors: DataError.
    """

    def __init__(self, folder: Path | None, *, length: int | None, device: torch.device) -> None:
        from corecli.nets.text import MAX_BYTES

        self._encoder = None if folder is None else TextEncoder(folder, device=device, length=length)
        self.length = self._encoder.length if self._encoder else length or MAX_BYTES
        self.width = self._encoder.width if self._encoder else 0  # of an embedding

    def encode(self, generator: Any, captions: list[str]) -> torch.Tensor:
        """Return the condition of each caption."""
        from corecli.nets.text import to_bytes

        if self._encoder is None:
            return to_bytes(captions, self.length)
        return self._encoder.embed(captions, tokens=generator.conditioning.attends)

    def cut(self, captions: list[str]) -> tuple[str, ...]:
        """Return a note if some captions are longer than `length`, else nothing."""
        from corecli.nets.text import num_cut

        cut = self._encoder.num_cut(captions) if self._encoder else num_cut(captions, self.length)
        unit = "tokens" if self._encoder else "bytes"
        note = f"{cut} of {len(captions)} captions are longer than {self.length} {unit} and were cut"
        return (note,) if cut else ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned:
    """The captions of N rows: the distinct `texts`, and the index of each row's text, `which`, int64 [N].

    folder: text encoder that embeds them, None for bytes. inputs: fingerprints of the file and of the encoder.
    """

    texts: list[str]
    which: np.ndarray
    folder: Path | None
    inputs: dict[str, str | None]


def of_images(path: Path, rows: Rows, class_names: tuple[str, ...]) -> list[str]:
    """Return the caption of each image, from a file: by its key, else by its group, else by its class.

    Of several captions of a class, the image's key selects one. Errors: as `read_captions`; DataError for duplicate
    ids, and naming the first images without a caption.
    """
    captions = read_captions(path)
    captions.rows(path)
    of_id = dict(zip(captions.ids, captions.texts, strict=True))
    of_class: dict[str, list[str]] = {}
    for name, text in zip(captions.classes, captions.texts, strict=True):
        of_class.setdefault(name, []).append(text)
    found = []
    for key, group, label in zip(rows.keys, rows.groups, rows.labels.tolist(), strict=True):
        alike = of_class.get(class_names[label], []) if class_names and label >= 0 else []
        one = alike[derive(0, "caption", key) % len(alike)] if alike else None
        found.append(of_id.get(key, of_id.get(group, one)))
    missing = [key for key, text in zip(rows.keys, found, strict=True) if text is None]
    if missing:
        reason = f"{len(missing)} of {len(found)} images have no caption: {', '.join(missing[:3])}"
        raise DataError(
            reason, where=path, hint="a caption needs the key or group of an image as its id, or the class of the image"
        )
    return found


def check_encoder(place: str | None) -> None:
    """Check a text encoder that is on this machine, without torch. Errors: as `check_text_encoder`."""
    if place is not None and Path(place).is_dir():
        check_text_encoder(Path(place))


def captioned(path: Path, texts: list[str], *, folder: Path | None) -> Captioned:
    """Return the captions `texts` of rows, read from the file `path`, for the text encoder in a folder or as bytes."""
    number: dict[str, int] = {}
    which = np.array([number.setdefault(text, len(number)) for text in texts], dtype=np.int64)
    encoder = None if folder is None else fingerprint(folder)
    inputs = {"captions": sha256_file(path), "text_encoder": encoder}
    return Captioned(texts=list(number), which=which, folder=folder, inputs=inputs)
