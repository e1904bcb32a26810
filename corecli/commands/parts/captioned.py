"""Captions as a condition: joined to images, and told to a generator as bytes or as a text encoder embeds them."""

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
    """Puts captions as a generator takes them: as bytes, or embedded by the text encoder in a folder.

    length: of the longest caption, in bytes or tokens; None for the default. Errors: DataError.
    """

    def __init__(self, folder: Path | None, *, length: int | None, device: torch.device) -> None:
        from corecli.nets.text import MAX_BYTES

        self._encoder = None if folder is None else TextEncoder(folder, device=device, length=length)
        self.length = self._encoder.length if self._encoder else length or MAX_BYTES
        self.width = self._encoder.width if self._encoder else 0  # of an embedding

    def encode(self, generator: Any, captions: list[str]) -> torch.Tensor:
        """The condition of each caption."""
        from corecli.nets.text import to_bytes

        if self._encoder is None:
            return to_bytes(captions, self.length)
        return self._encoder.embed(captions, tokens=generator.conditioning.attends)

    def cut(self, captions: list[str]) -> tuple[str, ...]:
        """A note when some of the captions are too long."""
        from corecli.nets.text import num_cut

        cut = self._encoder.num_cut(captions) if self._encoder else num_cut(captions, self.length)
        unit = "tokens" if self._encoder else "bytes"
        note = f"{cut} of {len(captions)} captions are longer than {self.length} {unit} and were cut"
        return (note,) if cut else ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned:
    """The captions of N rows: the different `texts`, and which of them is whose, int64 [N].

    folder: of the text encoder that reads them, None for bytes; inputs: fingerprints of the file and of the encoder.
    """

    texts: list[str]
    which: np.ndarray
    folder: Path | None
    inputs: dict[str, str | None]


def of_images(path: Path, rows: Rows, class_names: tuple[str, ...]) -> list[str]:
    """The caption of each image, from a file: of its key, else of its group, else one of those of its class.

    Which one of its class is a function of its key. Errors: as `read_captions`; DataError for duplicate ids, and naming
    the first images without a caption.
    """
    captions = read_captions(path)
    captions.rows(path)
    of_id = dict(zip(captions.ids, captions.texts, strict=True))
    of_class: dict[str, list[str]] = {}
    for name, text in zip(captions.classes, captions.texts, strict=True):
        of_class.setdefault(name, []).append(text)
    told = []
    for key, group, label in zip(rows.keys, rows.groups, rows.labels.tolist(), strict=True):
        alike = of_class.get(class_names[label], []) if class_names and label >= 0 else []
        one = alike[derive(0, "caption", key) % len(alike)] if alike else None
        told.append(of_id.get(key, of_id.get(group, one)))
    missing = [key for key, text in zip(rows.keys, told, strict=True) if text is None]
    if missing:
        reason = f"{len(missing)} of {len(told)} images have no caption: {', '.join(missing[:3])}"
        raise DataError(reason, where=path, hint="a caption's id is an image's key or group, or its class the image's")
    return told


def check_encoder(place: str | None) -> None:
    """A text encoder, as far as it shows without torch. Errors: as `text_files.check_text_encoder`."""
    if place is not None and Path(place).is_dir():
        check_text_encoder(Path(place))


def captioned(path: Path, texts: list[str], *, folder: Path | None) -> Captioned:
    """The captions `texts` of rows, from a file; read by the text encoder in a folder, or as bytes."""
    number: dict[str, int] = {}
    which = np.array([number.setdefault(text, len(number)) for text in texts], dtype=np.int64)
    encoder = None if folder is None else fingerprint(folder)
    inputs = {"captions": sha256_file(path), "text_encoder": encoder}
    return Captioned(texts=list(number), which=which, folder=folder, inputs=inputs)
