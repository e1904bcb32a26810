"""Check single files: tensors, archives, images, JSON and text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from corecli.base import checkpoint
from corecli.base.archives import open_zip
from corecli.base.documents import loads, read_bytes, read_json
from corecli.base.errors import DataError
from corecli.base.files import Kind, require_regular, sniff
from corecli.base.layout import read_index
from corecli.base.schemas import REPORT
from corecli.base.sums import Watch, check_sum
from corecli.data.captions import read_captions
from corecli.data.decode import EXTENSIONS
from corecli.data.formats.parts.checking import check_image
from corecli.data.imageset import check_set, is_set, record_of
from corecli.data.mix import is_mixture
from corecli.data.statistics import holds_statistics, read_statistics

Record = dict[str, Any]
Checked = tuple[str, Record]  # what a path is, and what it records about how it was made
LOG, REPORT_FILE = "log.jsonl", "report.json"
_BLOCK_BYTES = 1 << 20
_MAX_JSON_BYTES = 1 << 24  # a longer document is read line by line
_IMAGES = "arr_0.npy"  # in an npz
_TEXTS = (".txt", ".csv")
_SUFFIXES = (*_TEXTS, ".json", ".jsonl", ".npz", ".pt", ".pth", ".safetensors", ".tar")
_SHA1, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


def check_file(path: Path, watch: Watch) -> Checked:
    """Check everything that a file says of its content.

    Errors: DataError at the first difference, and for a file of no known kind.
    """
    require_regular(path)
    kind = sniff(path)
    _check_blob(path, watch)
    if kind in ("safetensors", "torch"):
        return _check_tensors(path, kind, watch)
    if kind == "npz":
        return _check_npz(path, watch)
    if kind == "tar":
        check_set(path, watch)
        return "image set (tar)", record_of(path)
    if kind == "image":
        return _check_picture(path, watch)
    if kind == "json":
        return _check_json(path, watch)
    if is_set(path):  # of a format without a kind of its own
        check_set(path, watch)
        return "image set", record_of(path)
    if path.suffix.lower() in _TEXTS:
        read_captions(path)
        watch(path.stat().st_size)
        return _check_report(path, "captions", watch)
    raise DataError("not a kind of file that can be checked", where=path, hint="or its start is damaged")


def is_known(path: Path) -> bool:
    """Whether a file in a folder is of a kind that `check_file` checks, or has its suffix; others are passed over."""
    suffix = path.suffix.lower()
    return path.is_file() and (sniff(path) != "unknown" or suffix in _SUFFIXES or suffix[1:] in EXTENSIONS)


def _check_tensors(path: Path, kind: Kind, watch: Watch) -> Checked:
    header = checkpoint.read_header(path)
    if header is None:
        if kind == "torch":
            with open_zip(path) as archive:
                _check_members(archive, watch)
            return "torch file of another tool", {}
        if {"images", "encoded"} & set(read_index(path)):
            check_set(path, watch)
        watch(path.stat().st_size)
        return "safetensors file of another tool", {}
    if header["kind"] != "images":
        checkpoint.verify_file(path, watch)
        return header["kind"], header
    check_set(path, watch)
    return "image set (packed)", header


def _check_npz(path: Path, watch: Watch) -> Checked:
    with open_zip(path) as archive:
        has_images = _IMAGES in archive.namelist()
        if not has_images:
            _check_members(archive, watch)
    if has_images:
        check_set(path, watch)
    if holds_statistics(path):
        read_statistics(path)
        return "statistics", {}
    return ("image set (npz)", record_of(path)) if has_images else ("arrays", {})


def _check_members(archive: ZipFile, watch: Watch) -> None:
    """Check the CRC-32 of every member. Errors: BadZipFile."""
    for info in archive.infolist():
        with archive.open(info) as member:
            while block := member.read(_BLOCK_BYTES):
                watch(len(block))
        watch.num_hashes += 1


def _check_picture(path: Path, watch: Watch) -> Checked:
    warning = check_image(path.read_bytes(), str(path))
    watch(path.stat().st_size)
    watch.notes += [f"libjpeg warns of {warning}"] if warning else []
    return "image", {}


def _check_json(path: Path, watch: Watch) -> Checked:
    if path.suffix == ".jsonl" or path.stat().st_size > _MAX_JSON_BYTES:
        return _check_lines(path, watch)
    try:
        value = loads(read_bytes(path), any_integer=True)
    except ValueError as error:
        raise DataError(f"not a readable JSON file: {error}", where=path, hint="make or copy it again") from error
    watch(path.stat().st_size)
    if not is_mixture(value):
        return "JSON", {}
    check_set(path, watch)
    return "mixture", value


def _check_lines(path: Path, watch: Watch) -> Checked:
    """Check that every line is JSON, and that captions are what their report says."""
    is_log, kind = path.name == LOG, "JSON lines"
    for number, line in enumerate(_lines(path, watch), start=1):
        if is_log and not line.endswith(b"\n"):
            watch.notes.append(f"{path}: line {number} is incomplete; a run that was killed continues before it")
            break
        try:
            value = loads(line)
        except ValueError as error:
            raise DataError(f"line {number} is not JSON: {error}", where=path, hint="make or copy it again") from error
        kind = "captions" if isinstance(value, dict) and value.keys() & {"caption", "text"} else kind
    return _check_report(path, "log" if is_log else kind, watch)


def _lines(path: Path, watch: Watch) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in file:
            watch(len(line))
            if line.strip():
                yield line


def _check_report(path: Path, kind: str, watch: Watch) -> Checked:
    """Compare a file with the hash in its folder, `FILE.d/report.json`, if it is there."""
    report = path.with_name(f"{path.name}.d") / REPORT_FILE
    expected = read_json(report, REPORT).get("sha256") if report.is_file() else None
    if expected is not None:
        check_sum(path, expected, watch)
    return kind, {}


def _check_blob(path: Path, watch: Watch) -> None:
    """Compare a link into the cache of a hub with the hash that names its target. Errors: DataError."""
    blob = path.resolve() if path.is_symlink() else path
    if blob.parent.name != "blobs":
        return
    if _SHA256.fullmatch(blob.name):
        check_sum(blob, blob.name, watch)
    elif _SHA1.fullmatch(blob.name):  # of git, for small files
        data = read_bytes(blob)
        if sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() != blob.name:
            raise DataError("the content does not match its hash", where=path, hint="the file is damaged; download it")
        watch.num_hashes += 1
