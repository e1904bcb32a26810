"""Raw pixels behind one line of JSON with the rows."""

import json

import numpy as np

from corecli.base.errors import DataError
from corecli.base.files import atomic_write, first_bytes
from corecli.data.formats.parts.writing import begin_stream
from corecli.data.pixels import ArrayPixels, PlainSet, digest
from corecli.data.rows import check_labels, make_rows

SUFFIX, ACCEPTS, MAGIC = ".raw", "a .raw file", b"raw "


def claims(spec):
    return first_bytes(spec).startswith(MAGIC)


def open_set(spec, *, image_size, on_bad):
    line = open(spec, "rb").readline()
    try:
        rows, names, shape, _ = json.loads(line.removeprefix(MAGIC))
        rows, names = make_rows(**rows, where=spec), tuple(names)
        if [len(rows), 3] != shape[:2]:
            raise ValueError(f"pixels of shape {shape} for {len(rows)} rows")
        images = np.memmap(spec, dtype=np.uint8, mode="r", offset=len(line), shape=tuple(shape))
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"damaged .raw file: {error}", where=spec, hint="make or copy it again") from error
    check_labels(rows, names, spec)
    pixels = ArrayPixels(array=images, content=digest(str(line)), resize=image_size)
    return PlainSet(rows=rows, pixels=pixels, class_names=names)


def made_with(path):
    return json.loads(open(path, "rb").readline().removeprefix(MAGIC))[-1]


def write(path, rows, chunks, *, class_names, header):
    size, arrays = begin_stream(chunks, rows, path)
    columns = {name: getattr(rows, name).tolist() for name in ("labels", "origins", "variants")}
    head = [{"keys": [*rows.keys], "groups": [*rows.groups], **columns}, class_names, (len(rows), 3, *size), header]
    with atomic_write(path) as file:
        file.write(MAGIC + json.dumps(head).encode() + b"\n")
        file.writelines(images.data for images in arrays)
