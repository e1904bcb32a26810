"""`captioned:FILE.csv:FOLDER[:FOLDER...]`: images of captions in the layout of StableRep and SynCLR.

Each line of the CSV has the path of an image, which is the same in every folder, and its caption. Folder k has the k-th
image of each caption. All images of a caption are one group, named like the id that `read_captions` gives the caption.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from corecli.base.errors import UsageError
from corecli.base.files import missing
from corecli.data.captions import read_listed
from corecli.data.formats.directory import Files
from corecli.data.pixels import EncodedPixels, OnBad, PlainSet, without_bad
from corecli.data.rows import make_rows, variant_key

NAMED = "captioned:FILE.csv:FOLDER[:FOLDER...]"


def open_set(spec: str, *, image_size: int | None, on_bad: OnBad) -> PlainSet:
    """Open the images of all captions, caption by caption; the image in folder k has the key `path@k`.

    Errors: UsageError for a malformed name, MissingInputError, DataError naming the line.
    """
    _, file, *folders = spec.split(":")
    if not file or not folders or not all(folders):
        raise UsageError(
            "malformed name of a captioned set", where=spec, hint="write captioned:captions.csv:folder1:folder2"
        )
    for folder in folders:
        if not Path(folder).is_dir():
            raise missing(folder, "folder")
    listed = read_listed(Path(file))
    names = [f"{folder}/{path}" for path, _ in listed for folder in folders]
    keys = [variant_key(path.rpartition(".")[0], k) for path, _ in listed for k in range(len(folders))]
    pixels = EncodedPixels(store=Files(root=Path(), names=names), positions=np.arange(len(names)), resize=image_size)
    return without_bad(PlainSet(rows=make_rows(keys, where=spec), pixels=pixels), pixels, on_bad, spec)
