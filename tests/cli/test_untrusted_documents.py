"""Files that are malformed on purpose end in one line that names the place, without a hang or a traceback."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ran import Run, refused

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def rewrite(path: Path, change: dict[str, Any], *, original: Path) -> Path:
    """Copy a safetensors file with changed members of its index."""
    content = original.read_bytes()
    size = int.from_bytes(content[:8], "little")
    index = json.loads(content[8 : 8 + size])
    text = json.dumps({**index, **{name: {**index[name], **new} for name, new in change.items()}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return path


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("deep.json", DEEP, 65),
        ("c.json", DEEP, 78),
        ("c.toml", "seed = " + "[" * 100_000 + "]" * 100_000, 78),
        ("shallower.json", '{"kind": "mixture", "parts": ' + "[" * 150 + "]" * 150 + "}", 65),
    ],
)
def test_deep_nesting(run: Run, name: str, text: str, code: int) -> None:
    Path(name).write_text(text)
    if name.startswith("c."):
        refused(
            run("show", "digits:8:test", "--out", "o", "--config", name), "show", code, name, "nested more than 100"
        )
    else:
        refused(
            run("show", name, "--out", "o"), "show", code, f"{name}: not a readable JSON file: nested more than 100"
        )


@pytest.mark.parametrize("seed", ["inf", "-inf", "nan", "1e999"])
def test_numbers_of_config_files_are_finite(run: Run, seed: str) -> None:
    Path("c.toml").write_text(f"seed = {seed}")
    refused(run("show", "digits:8:test", "--out", "o", "--config", "c.toml"), "show", 78, "c.toml: seed: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_offsets": []}, "images.data_offsets: expected [begin, end], found []"),
        ({"data_offsets": [-8, 8]}, "images.data_offsets: expected [begin, end], found [-8, 8]"),
        ({"data_offsets": "x"}, 'images.data_offsets: expected [begin, end], found "x"'),
        ({"shape": [-1, 3, 8, 8]}, "images.shape[0]: expected an integer of at least 0, found -1"),
        ({"shape": 5}, "images.shape: expected a list, found 5"),
        ({"dtype": None}, "images.dtype: expected a string, found null"),
    ],
)
def test_index_of_tensors(run: Run, tiny: Path, change: dict[str, Any], words: str) -> None:
    path = rewrite(Path("x.safetensors"), {"images": change}, original=tiny / "real.safetensors")
    refused(run("show", path, "--out", "o"), "show", 65, f"x.safetensors: {words}")


@pytest.mark.parametrize("label", ["1" + "0" * 23, "-7", '{"cls": 1' + "0" * 23 + "}"])
def test_labels_of_a_tar_fit(run: Run, tiny: Path, label: str) -> None:
    png = next((tiny / "syn").rglob("*.png")).read_bytes()
    with tarfile.open("t.tar", "w") as archive:
        for name, payload in (("a.png", png), (f"a.{'json' if '{' in label else 'cls'}", label.encode())):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    refused(run("show", "t.tar", "--out", "o"), "show", 65, "t.tar: ")


def test_statistics_that_are_no_arrays(run: Run, tiny: Path) -> None:
    np.savez("names.npz", mu=np.array(["a", "b"]), sigma=np.eye(2))
    np.savez("count.npz", mu=np.zeros(2), sigma=np.eye(2), num_images=np.arange(3))
    with zipfile.ZipFile("bytes.npz", "w") as archive:
        archive.writestr("mu.npy", b"no array")
        archive.writestr("sigma.npy", b"no array")
    line = ("fid", "--extractor", tiny / "f.safetensors", "--quiet", "--samples", tiny / "syn", "--reference")
    refused(run(*line, "names.npz"), "fid", 65, "names.npz: mu: expected numbers, found <U1 [2]")
    refused(run(*line, "count.npz"), "fid", 65, "count.npz: num_images: expected an integer, found int64 [3]")
    refused(run(*line, "bytes.npz"), "fid", 65, "bytes.npz: the npz file is damaged")


def test_mixtures_that_name_each_other(run: Run) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        write_mixture(f"{name}.json", [f"{other}.json"])
    refused(run("show", "a.json", "--out", "o"), "show", 65, "the mixture contains itself")


def test_mixtures_of_mixtures_are_bounded(run: Run) -> None:
    """A chain of 100, and ten in each of four levels, which would be read 11,111 times."""
    np.savez("one.npz", arr_0=np.zeros((1, 8, 8, 3), dtype=np.uint8))
    for number in range(100):
        write_mixture(f"chain{number}.json", [f"chain{number + 1}.json"])
    write_mixture("chain100.json", ["one.npz"])
    refused(run("show", "chain0.json", "--out", "o"), "show", 65, "mixtures are nested more than 16 deep")
    for level in range(4):
        write_mixture(f"level{level}.json", [f"level{level + 1}.json"] * 10)
    write_mixture("level4.json", ["one.npz"])
    refused(run("show", "level0.json", "--out", "o"), "show", 65, "more than 256 mixtures within one another")


def write_mixture(name: str, sets: list[str], **more: Any) -> None:
    parts = [{"set": one, "prefix": f"p{i}", **more} for i, one in enumerate(sets)]
    Path(name).write_text(json.dumps({"kind": "mixture", "parts": parts}))


def test_an_epoch_is_bounded(run: Run) -> None:
    write_mixture("huge.json", ["digits:8:test"], repeat=9e8)
    refused(run("show", "huge.json", "--out", "o"), "show", 65, "huge.json: an epoch has more than 536870912 images")


@pytest.mark.parametrize("members", [{"repeat": "x"}, {"first": 10**30}, {"seed": float("inf")}])
def test_parts_of_mixtures(run: Run, members: dict[str, Any]) -> None:
    write_mixture("m.json", ["digits:8:test"], **members)
    place = next(iter(members))
    words = (
        "m.json: not a readable JSON file: an integer has more" if place == "first" else f"m.json: parts[0].{place}: "
    )
    refused(run("show", "m.json", "--out", "o"), "show", 65, words)


def test_pipes_and_devices_are_no_files(run: Run) -> None:
    os.mkfifo("pipe")
    refused(run("show", "digits:8:test", "--out", "o", "--config", "pipe"), "show", 65, "pipe: not a regular file")
    refused(run("show", "pipe", "--out", "o"), "show", 65, "pipe: not an image set")
    Path("set").mkdir()
    os.mkfifo("set/manifest.json")
    refused(run("show", "set", "--out", "o"), "show", 65, "set/manifest.json: not a regular file")
    Path("images").mkdir()
    os.mkfifo("images/a.png")
    refused(run("show", "images", "--out", "o"), "show", 65, "images/a.png")
    refused(run("show", "/dev/zero", "--out", "o"), "show", 65, "/dev/zero")
    os.mkfifo("f.pt")
    line = ("extract", "--data", "digits:8:test", "--out", "o", "--encoder")
    refused(run(*line, "f.pt"), "extract", 65, "f.pt: not a regular file")


def test_an_archive_that_expands_too_far(run: Run) -> None:
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as member:
        shape = (2_000, 256, 256, 3)
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        block = bytes(256 * 256 * 3 * 100)
        for _ in range(shape[0] // 100):
            member.write(block)
    assert Path("bomb.npz").stat().st_size < 1_000_000
    refused(run("show", "bomb.npz", "--out", "o"), "show", 65, "bomb.npz: ", "expand to 393216", "100 times as many")


def test_shards_stay_in_their_folder(run: Run, tiny: Path) -> None:
    shutil.copy(tiny / "real.safetensors", "outside.safetensors")
    Path("s").mkdir()
    shutil.copy(tiny / "real.safetensors", "s/part-000000.safetensors")
    size = Path("outside.safetensors").stat().st_size
    Path("s/shards.json").write_text("{}")
    for file, words in (
        ("../outside.safetensors", "shards[0]"),
        (str(Path("outside.safetensors").resolve()), "shards[0]"),
    ):
        entry = {"num": 355, "file": file, "bytes": size, "sha256": "0"}
        about = {"kind": "images", "complete": True, "class_names": [], "shards": [entry]}
        Path("s/manifest.json").write_text(json.dumps(about))
        refused(
            run("show", "s", "--out", "o"), "show", 65, f"s/manifest.json: {words}.file: expected the name of a file"
        )
