"""Captions as a condition: joined to images, and told to a generator as bytes or as a text encoder embeds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.errors import DataError
from corecli.base.files import sha256_file
from corecli.data.captions import read_captions
from corecli.data.rows import Rows, make_rows

if TYPE_CHECKING:
    import torch

    from corecli.nets.text_files import TextEncoder


def of_rows(path: Path, rows: Rows) -> tuple[list[str], np.ndarray]:
    """(The different captions of images, which of them is whose, int64 [N]): by an image's key, else by its group.

    Errors: as `read_captions`; DataError for duplicate ids, and naming the first images without a caption.
    """
    captions = read_captions(path)
    make_rows(captions.ids, where=path)
    of_id = dict(zip(captions.ids, captions.texts, strict=True))
    told = [of_id.get(key, of_id.get(group)) for key, group in zip(rows.keys, rows.groups, strict=True)]
    missing = [key for key, text in zip(rows.keys, told, strict=True) if text is None]
    if missing:
        reason = f"{len(missing)} of {len(told)} images have no caption: {', '.join(missing[:3])}"
        raise DataError(reason, where=path, hint="an id is the key of an image, or its group")
    number: dict[str, int] = {}
    which = np.array([number.setdefault(str(text), len(number)) for text in told], dtype=np.int64)
    return list(number), which


def check_encoder(place: str | None) -> None:
    """A text encoder, as far as it shows without torch. Errors: as `text_files.check_text_encoder`."""
    from corecli.nets import text_files

    if place is not None and Path(place).is_dir():
        text_files.check_text_encoder(Path(place))


def fingerprint(path: Path | None) -> str | None:
    """Of a file of captions, where there is one."""
    return None if path is None else sha256_file(path)


def tell(generator: Any, captions: list[str], encoder: TextEncoder | None) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Captions as the generator takes them, and a note when some were cut."""
    from corecli.nets.text import to_bytes

    length = generator.config.caption_length
    if encoder is None:
        told, cut = to_bytes(captions, length)
    else:
        told, cut = encoder.embed(captions, tokens=generator.conditioning.attends)
    unit = "bytes" if encoder is None else "tokens"
    return told, (f"{cut} of {len(captions)} captions are longer than {length} {unit} and were cut",) if cut else ()
