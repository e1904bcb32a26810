"""Compare the files that a path was made from with the fingerprints that it records."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from corecli.base import checkpoint
from corecli.base.errors import CorecliError
from corecli.base.files import sha256_file, sniff
from corecli.commands.verify.files import Record
from corecli.data.imageset import is_named, open_set
from corecli.data.mix import is_mixture, load_mixture
from corecli.nets.weights import pipelines, text_encoders

State = Literal["ok", "differs", "not found", "not compared"]
_SHA256 = re.compile("[0-9a-f]{64}")
_PIPELINE = "diffusers:"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A file that a path was made from.

    name: the option that named it; spec: its path or name as recorded; place: where it was found.
    """

    name: str
    spec: str
    fingerprint: str
    state: State
    place: str | None = None


def find_parents(path: Path, record: Record) -> list[Parent]:
    """Return the parents of a path that its record names, each compared with what is there now."""
    config = record.get("config") if isinstance(record.get("config"), dict) else {}
    return [_compared(path, config or {}, *one) for one in _recorded(path, record, config or {})]


def _recorded(path: Path, record: Record, config: Record) -> Iterator[tuple[str, str, str]]:
    """Yield (option, path as recorded, fingerprint) of the parents."""
    known = {**(record.get("identity") or {}), **(record.get("parents") or {})}
    prints = {name: value for name, value in known.items() if isinstance(value, str) and _SHA256.fullmatch(value)}
    for name, value in prints.items():
        if isinstance(config.get(name), str):
            yield name, config[name], value
    listed = [(name, spec) for name in ("real", "synthetic") for spec in config.get(name) or ()]
    parts = [part.set for part in load_mixture(path).parts] if is_mixture(record) else [spec for _, spec in listed]
    for (name, spec), part in zip(listed, parts, strict=False):
        if spec in prints:
            yield name, part, prints[spec]


def _compared(path: Path, config: Record, name: str, spec: str, fingerprint: str) -> Parent:
    bare = spec.removeprefix(_PIPELINE)
    places = [spec] if is_named(spec) else [place for place in _places(bare, path) if Path(place).exists()]
    found = {place: _fingerprints(name, place, spec, config) for place in places}
    state: State = "differs" if any(found.values()) else "not compared" if found else "not found"
    place = next((place for place, prints in found.items() if fingerprint in prints), None)
    if place is not None:
        state = "ok"
    return Parent(name=name, spec=spec, fingerprint=fingerprint, state=state, place=place or next(iter(found), None))


def _places(spec: str, path: Path) -> list[str]:
    """Return where a recorded path may be: from the working directory, and from the folder of `path`."""
    return list(dict.fromkeys([spec, str(path.absolute().parent / spec)]))


def _fingerprints(name: str, place: str, spec: str, config: Record) -> set[str]:
    """Return the fingerprints that a parent may be recorded by; none if they cannot be computed without its network.

    The fingerprint of an image set depends on the size to which a verb resized it.
    """
    path = Path(place)
    if name == "first_stage":
        return set()
    try:
        if spec.startswith(_PIPELINE):
            return {pipelines.fingerprint(path)}
        if name == "text_encoder":
            return {text_encoders.fingerprint(path)}
        if name == "captions":
            return {sha256_file(path)}
        if pipelines.is_own(path):
            own = checkpoint.require_header(path / pipelines.OWN, kind=pipelines.OWN_KIND)
            return {own["generator"].get("fingerprint")} - {None}
        if sniff(path) == "torch" or name in ("encoder", "init", "ckpt", "features"):
            header = checkpoint.find_header(path)
            return set() if header is None else {header["fingerprint"]}
        return {_of_set(place, size, config) for size in {None, config.get("image_size")}}
    except (CorecliError, OSError):
        return {"unreadable"}


def _of_set(spec: str, image_size: Any, config: Record) -> str:
    return open_set(spec, image_size=image_size, on_bad=config.get("on_bad") or "fail").fingerprint
