"""Seeded mutations of every kind of header: a reader gives a result or one CorecliError, never another exception."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from corecli.base import checkpoint
from corecli.base.config import resolve
from corecli.base.errors import CorecliError
from corecli.commands.extract import Config
from corecli.commands.show.plots import read_log
from corecli.data.captions import read_captions
from corecli.data.features import load_features
from corecli.data.imageset import open_set
from corecli.data.statistics import Statistics, read_statistics, write_statistics
from corecli.nets.encoder import build_encoder, load_encoder, save_encoder

CASES = 30  # of each kind
VALUES: list[Any] = [
    None, True, False, 0, -1, 10**23, 2**62, float("inf"), float("nan"), -0.5, "", "x", "../up", "\x1b[2J\n", "\ud800",
    [], [[]], [-1, 5], [0], {}, {"a": 1}, [None] * 3,
]  # fmt: skip
Reader = Callable[[Path], Any]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one member or item replaced, removed, added or nested."""
    places = list(_places(value))
    place = rng.choice(places)
    kind = rng.choice(["replace", "replace", "replace", "remove", "add", "nest"])
    new = rng.choice(VALUES)
    if not place:
        return new
    changed = copy.deepcopy(value)
    owner = changed
    for step in place[:-1]:
        owner = owner[step]
    if kind == "remove":
        del owner[place[-1]]
    elif kind == "add" and isinstance(owner, list):
        owner.insert(place[-1], new)
    else:
        owner[place[-1]] = [owner[place[-1]]] if kind == "nest" else new
    return changed


def test_mutations_change_the_value() -> None:
    value = {"a": [1, {"b": "c"}], "d": 2}
    found = [json.dumps(mutated(value, random.Random(seed))) for seed in range(50)]
    assert len(set(found) - {json.dumps(value)}) > 30


def _places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in members:
        yield from _places(inner, (*above, name))


def text_of(value: Any, rng: random.Random) -> bytes:
    """JSON, at times with a byte of it replaced or cut off."""
    text = bytearray(json.dumps(value).encode())
    if rng.random() < 0.2:
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text[: rng.randrange(1, len(text) + 1)] if rng.random() < 0.1 else text)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "png")
    return file.getvalue()


class Kind:
    """Files of one kind: how they are read, their JSON, and `put`, which writes one with other JSON in a folder."""

    def __init__(self, read: Reader, value: Any, put: Callable[[Path, bytes], Path]) -> None:
        self.read, self.value, self.put = read, value, put


def _plain(name: str) -> Callable[[Path, bytes], Path]:
    def put(folder: Path, text: bytes) -> Path:
        (folder / name).write_bytes(text)
        return folder / name

    return put


def _index(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _safetensors(original: Path, *, header: bool) -> tuple[Any, Callable[[Path, bytes], Path]]:
    """The index of a file, or the corecli header in it, and a function that replaces it."""
    index, body = _index(original)
    value = json.loads(index["__metadata__"]["corecli"]) if header else index

    def put(folder: Path, text: bytes) -> Path:
        whole = text
        if header:
            metadata = {"corecli": text.decode(errors="replace")}
            whole = json.dumps({**index, "__metadata__": metadata}).encode()
        path = folder / original.name
        path.write_bytes(len(whole).to_bytes(8, "little") + whole + body)
        return path

    return value, put


def _in_set(name: str) -> Callable[[Path, bytes], Path]:
    def put(folder: Path, text: bytes) -> Path:
        root = folder / name
        root.mkdir(exist_ok=True)
        (root / "a.png").write_bytes(png())
        (root / "manifest.json").write_bytes(text)
        return root

    return put


def _in_shards(folder: Path, text: bytes) -> Path:
    root = folder / "shards"
    root.mkdir(exist_ok=True)
    _tar(root / "part-000000.tar", {"a.png": png()})
    (root / "shards.json").write_text("{}")
    (root / "manifest.json").write_bytes(text)
    return root


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))


def _in_tar(member: str) -> Callable[[Path, bytes], Path]:
    def put(folder: Path, text: bytes) -> Path:
        members = {member: text, "a.png": png()}
        _tar(folder / "t.tar", members)
        return folder / "t.tar"

    return put


def _in_npz(folder: Path, text: bytes) -> Path:
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "s.npz", arr_0=images, corecli=np.frombuffer(text, dtype=np.uint8))
    return folder / "s.npz"


def _in_torch(folder: Path, text: bytes) -> Path:
    torch.save({"x": torch.zeros(1)}, folder / "x.pt")
    with zipfile.ZipFile(folder / "x.pt", "a") as archive:
        archive.writestr("archive/corecli.json", text)
    return folder / "x.pt"


def _toml_or_json(path: Path) -> Config:
    given = {"data": "x", "encoder": "y", "out": "z", "config": path}
    return resolve(Config, given, presets={}, environment={})


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("originals")
    encoder = build_encoder("resnet10-tiny", image_size=8, projector_hidden=4, projector_dim=2)
    save_encoder(folder / "f.safetensors", encoder, parents={"data": "0"})
    rows = {"keys.bytes": torch.tensor([97, 98], dtype=torch.uint8), "keys.offsets": torch.tensor([0, 1, 2])}
    table = {"features": torch.zeros(2, 3), **rows}
    checkpoint.save(folder / "z.safetensors", table, kind="features", encoder="0", layer="backbone", class_names=["a"])
    images = {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), **rows, "labels": torch.zeros(2, dtype=torch.int64)}
    checkpoint.save(folder / "s.safetensors", images, kind="images", class_names=["a"], identity={"a": 1})
    files = {"encoder": ("f", load_encoder), "features": ("z", load_features), "packed": ("s", open_and_read)}
    found: dict[str, Kind] = {}
    for name, (stem, read) in files.items():
        for part in ("header", "index"):
            found[f"{name}-{part}"] = Kind(read, *_safetensors(folder / f"{stem}.safetensors", header=part == "header"))
    manifest = {
        "kind": "images", "complete": True, "num": 1, "class_names": ["x"], "identity": {"a": 1},
        "rows": {"groups": ["a"], "labels": [0], "origins": 1, "variants": [2], "similarity": [0.5]},
    }  # fmt: skip
    shard = {"num": 1, "file": "part-000000.tar", "bytes": 10240, "sha256": "0"}
    header = {"kind": "features", "format": 1, "fingerprint": "0", "identity": {}, "class_names": ["a"]}
    part = {"set": "digits:8:test", "repeat": 1, "first": 5, "origin": "real", "seed": 0, "prefix": "p"}
    mixture = {"kind": "mixture", "format": 1, "parts": [part], "order": "union", "guard": False, "missing": "self"}
    options = {"on_bad": "fail", "batch_size": 8, "layer": "backbone", "quiet": True}
    sidecar = {"cls": 1, "label": 2}
    return found | {
        "mixture": Kind(open_and_read, mixture, _plain("m.json")),
        "manifest": Kind(open_and_read, manifest, _in_set("d")),
        "shards": Kind(open_and_read, {**manifest, "rows": None, "shards": [shard]}, _in_shards),
        "tar-manifest": Kind(open_and_read, manifest, _in_tar(".manifest.json")),
        "tar-label": Kind(open_and_read, sidecar, _in_tar("a.json")),
        "tar-class": Kind(open_and_read, 1, _in_tar("a.cls")),
        "npz": Kind(open_and_read, {"class_names": ["a", "b"], "identity": {}}, _in_npz),
        "torch": Kind(checkpoint.require_header, header, _in_torch),
        "captions": Kind(read_rows, {"id": "a", "caption": "A dog.", "class": "dog"}, _plain("c.jsonl")),
        "log": Kind(lambda path: read_log(path.parent), {"step": 1, "loss": 0.5}, _plain("log.jsonl")),
        "config": Kind(_toml_or_json, options, _plain("c.json")),
    }


def open_and_read(path: Path) -> Any:
    found = open_set(path)
    return found.read_array(np.arange(min(2, len(found.rows))))


def read_rows(path: Path) -> Any:
    return read_captions(path).rows(path)


KINDS = [
    *(f"{kind}-{part}" for kind in ("encoder", "features", "packed") for part in ("header", "index")),
    *("mixture", "manifest", "shards", "tar-manifest", "tar-label", "tar-class", "npz", "torch"),
    *("captions", "log", "config"),
]


def outcome(read: Reader, path: Path) -> CorecliError | None:
    """The error of a reader; any other exception fails the test."""
    try:
        read(path)
    except CorecliError as error:
        return error
    return None


def test_every_kind_is_here(kinds: dict[str, Kind]) -> None:
    assert sorted(kinds) == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_mutated_headers_give_a_result_or_one_error(name: str, kinds: dict[str, Kind], tmp_path: Path) -> None:
    kind, refused = kinds[name], 0
    whole = kind.put(tmp_path, json.dumps(kind.value).encode() + b"\n" * (name == "log"))
    assert outcome(kind.read, whole) is None
    for case in range(int(os.environ.get("FUZZ_CASES", CASES))):
        rng = random.Random(f"{name} {case}")
        text = text_of(mutated(kind.value, rng), rng) + b"\n" * (name == "log")
        print(f"case {case}: {text[:300]!r}")
        error = outcome(kind.read, kind.put(tmp_path, text))
        refused += error is not None
    assert refused, "no mutation was refused"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_nesting_is_refused(name: str, brackets: str, kinds: dict[str, Kind], tmp_path: Path) -> None:
    opening = '{"a":' if brackets == "{}" else '{"a":['
    for depth in (200, 100_000):
        text = (opening * depth + "1" + ("]}" if brackets == "[]" else "}") * depth).encode()
        text += b"\n" * (name == "log")
        assert outcome(kinds[name].read, kinds[name].put(tmp_path, text)) is not None


def test_mutated_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    write_statistics(path, Statistics(mean=np.zeros(3), covariance=np.eye(3), space="x", num_images=4))
    original = path.read_bytes()
    assert outcome(read_statistics, path) is None
    for case in range(200):
        rng, content = random.Random(case), bytearray(original)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(content))] = rng.choice([0, 10, 40, 91, 255, rng.randrange(256)])
        path.write_bytes(content)
        outcome(read_statistics, path)


def test_mutated_tensors_of_other_tools(tmp_path: Path) -> None:
    save_file({"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    value, body = _index(tmp_path / "x.safetensors")
    for case in range(100):
        text = json.dumps(mutated(value, random.Random(case))).encode()
        (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
        outcome(open_and_read, tmp_path / "x.safetensors")
