"""verify: whole files of every kind pass, and every flipped bit in anything with a hash is found."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ran import Run, refused

from corecli.base.sums import SUMS, read_sums, write_sums
from corecli.commands.verify import command
from corecli.data.imageset import write_set
from corecli.data.rows import make_rows

MADE = {  # a file or folder, and the line that makes it from those of `tiny`
    "t.tar": "inflate --real $tiny/real.safetensors --materialize t.tar",
    "t.npz": "inflate --real $tiny/real.safetensors --materialize t.npz",
    "tars": "inflate --real $tiny/real.safetensors --materialize tars --format tar",
    "many": "sample --ckpt $tiny/unconditional.pt --num 6 --steps 1 --shards 2 --out many",
    "c.jsonl": "captions --num 20 --out c.jsonl",
    "s.npz": "fid --reference $tiny/z.safetensors --samples $tiny/z.safetensors --save-stats s.npz",
}
KINDS = {
    "f.safetensors": "encoder",
    "z.safetensors": "features",
    "g.pt": "generator",
    "real.safetensors": "image set (packed)",
    "syn": "image set",
    "masks": "image set",
    "mix.json": "mixture",
    "f.safetensors.d": "run folder",
    "t.tar": "image set (tar)",
    "t.npz": "image set (npz)",
    "tars": "image set",
    "many": "image set",
    "c.jsonl": "captions",
    "c.jsonl.d": "run folder",
    "s.npz": "statistics",
}
HASHED = ("f.safetensors", "z.safetensors", "real.safetensors", "syn", "t.tar", "tars", "many", "c.jsonl")


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every kind."""
    folder = tmp_path_factory.mktemp("made")
    for line in MADE.values():
        words = [sys.executable, "-m", "corecli", *line.replace("$tiny", str(tiny)).split(), "-q", "--device", "cpu"]
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in KINDS.keys() - {path.name for path in folder.iterdir()}:
        _copy(tiny / name, folder / name)
    return folder


@pytest.fixture
def here(run: Run, made: Path) -> None:
    """Copies of them in the working directory of `run`."""
    for name in KINDS:
        _copy(made / name, Path(name))


def _copy(source: Path, target: Path) -> None:
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def flips(path: Path, num: int, seed: int = 0) -> Iterator[str]:
    """Flip one bit at a time of a file, or of the visible files of a folder, at seeded positions; yield the place."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]
    sizes, rng = np.array([file.stat().st_size for file in files]), np.random.default_rng(seed)
    for place in rng.integers(0, sizes.sum(), num).tolist():
        which = int(np.searchsorted(np.cumsum(sizes), place, side="right"))
        position, bit = place - int(sizes[:which].sum()), int(rng.integers(8))
        data = files[which].read_bytes()
        files[which].write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
        yield f"{files[which]} byte {position} bit {bit}"
        files[which].write_bytes(data)


@pytest.mark.usefixtures("here")
def test_whole_files_of_every_kind_pass(run: Run) -> None:
    ran = run("verify", *KINDS)
    assert ran.code == 0, ran.out + ran.err
    lines = [line.split("\t") for line in ran.out.splitlines()]
    assert [(path, status) for path, status, _ in lines] == [(path, "ok") for path in KINDS]
    assert [what.partition(",")[0] for *_, what in lines] == list(KINDS.values())
    hashes = {path: int(re.findall(r"(\d+) hash", what)[0]) for path, _, what in lines}
    assert {path for path in KINDS if not hashes[path]} == {"masks", "f.safetensors.d", "c.jsonl.d"}


@pytest.mark.usefixtures("here")
def test_a_folder_of_everything_is_checked_file_by_file(run: Run) -> None:
    assert run("verify", ".").out.startswith(".\tok\tfolder, ")
    os.truncate("t.npz", 1000)
    assert "t.npz" in run("verify", ".").out


@pytest.mark.usefixtures("here")
def test_all_paths_are_checked_and_one_that_differs_decides_the_exit_code(run: Run) -> None:
    os.truncate("z.safetensors", 5000)
    ran = run("verify", "z.safetensors", "absent", "f.safetensors", "--json")
    assert ran.code == 65
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [record["status"] for record in records] == ["differs", "missing", "ok"]
    assert records[2]["hashes"] > 0 and records[2]["error"] is None
    assert ran.err.splitlines()[-1] == (
        "corecli verify: error: 2 of 3 paths differ or are missing (their lines on standard output say why)"
    )
    missing = run("verify", "absent", "-q")
    assert (missing.code, missing.err) == (66, "corecli verify: error: absent: no such file or directory\n")
    assert missing.out == "absent\tmissing\tabsent: no such file or directory\n"
    assert run("verify", "absent", "--dry-run").code == 66
    refused(run("verify"), "verify", 2, "PATH is required")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", HASHED)
def test_every_flip_in_anything_with_a_hash_is_found(run: Run, name: str) -> None:
    silent = [place for place in flips(Path(name), 25) if run("verify", name, "-q").code != 65]
    assert not silent


@pytest.mark.usefixtures("here")
def test_what_differs_is_named(run: Run) -> None:
    image = sorted(Path("syn").rglob("*.png"))[0]
    data = image.read_bytes()
    for change, reason in (
        (lambda: image.write_bytes(data[:-20]), f"{image}: the content does not match its hash"),
        (image.unlink, f"{image}: is listed in SHA256SUMS and does not exist"),
        (
            lambda: shutil.copy(Path("masks/1.png"), image.with_name("new.png")),
            "found 7 images, but the manifest lists",
        ),
    ):
        change()
        refused_line = run("verify", "syn", "-q")
        assert refused_line.code == 65
        assert reason in refused_line.out and reason in refused_line.err
        image.with_name("new.png").unlink(missing_ok=True)
        image.write_bytes(data)
    assert run("verify", "syn").code == 0
    assert subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd="syn", check=False).returncode == 0


@pytest.mark.usefixtures("here")
def test_a_damaged_index_of_a_tar_is_made_again(run: Run) -> None:
    index = Path("tars/.index.safetensors")
    assert run("verify", "tars").code == 0
    data = index.read_bytes()
    index.write_bytes(data[:-8] + bytes(8))  # a size or a position of another image
    assert run("verify", "tars", "-q").code == 0
    assert index.read_bytes()[-8:] == data[-8:]


# Parents


@pytest.mark.usefixtures("here")
def test_parents_are_compared_and_checked(run: Run, tiny: Path) -> None:
    line = ("extract", "--data", "real.safetensors", "--encoder", "f.safetensors", "-q", "--out")
    assert run(*line, "new.safetensors").code == 0
    ran = run("verify", "new.safetensors", "--json")
    parents = {one["name"]: (one["spec"], one["state"]) for one in json.loads(ran.out)["parents"]}
    assert parents == {"data": ("real.safetensors", "ok"), "encoder": ("f.safetensors", "ok")}
    assert run("verify", "new.safetensors", "--parents").code == 0
    # A flip that the header of the parent does not show is found with --parents.
    place = next(flips(Path("f.safetensors"), 1))
    assert "byte" in place
    assert run("verify", "new.safetensors", "-q").code == 0
    assert run("verify", "new.safetensors", "--parents", "-q").code == 65
    # Another file in its place is found always.
    shutil.copy(tiny / "f1.safetensors", "f.safetensors")
    ran = run("verify", "new.safetensors", "-q")
    assert (ran.code, "f.safetensors is not the encoder that it was made from" in ran.err) == (65, True)
    Path("f.safetensors").unlink()
    ran = run("verify", "new.safetensors")
    assert (ran.code, ran.err) == (0, "corecli verify: new.safetensors: its encoder f.safetensors was not found\n")
    ran = run("verify", "new.safetensors", "--parents", "-q")
    assert (ran.code, "new.safetensors: its encoder f.safetensors is not there" in ran.err) == (66, True)


@pytest.mark.usefixtures("here")
def test_a_mixture_is_checked_with_its_parts(run: Run) -> None:
    assert run("inflate", "--real", "masks", "--synthetic", "t.tar", "--out", "m.json", "-q").code == 0
    ran = run("verify", "m.json")
    assert ran.out.startswith("m.json\tok\tmixture, ") and ran.out.endswith("2 parents\n"), ran.out + ran.err
    image = Path("masks/1.png").read_bytes()
    Path("masks/1.png").write_bytes(image[:-20])
    ran = run("verify", "m.json", "-q")
    assert (ran.code, "masks/1.png: " in ran.err) == (65, True)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("masks/1.png")  # readable, and not the recorded one
    assert "masks is not the real that it was made from" in run("verify", "m.json", "-q").err


# Files of other tools


def test_files_of_other_tools(run: Run) -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((64, 64))
    Path("photos").mkdir()
    for name in ("a.jpg", "b.jpg", "c.png"):
        photo.save(Path("photos", name))
    assert run("verify", "photos", "digits:8:test").code == 0
    whole = Path("photos/a.jpg").read_bytes()
    Path("photos/a.jpg").write_bytes(whole[:-300] + bytes(298) + whole[-2:])
    ran = run("verify", "photos")
    assert ran.code == 0 and re.search(r"libjpeg warns of 1 of 3 images; photos/a.jpg: .+", ran.err), ran.err
    Path("photos/a.jpg").write_bytes(whole[:300])
    assert "photos/a.jpg: truncated" in run("verify", "photos", "-q").err
    np.savez_compressed("x.npz", mu=np.ones(50))
    data = Path("x.npz").read_bytes()
    Path("x.npz").write_bytes(data[:60] + b"\xff" + data[61:])
    assert run("verify", "x.npz", "-q").code == 65
    Path("notes.bin").write_bytes(b"\x01notes")
    refused_line = run("verify", "notes.bin", "-q")
    assert "notes.bin: not a kind of file that can be checked" in refused_line.err


def test_sums_of_any_names(tmp_path: Path) -> None:
    names = ["plain.png", "a b/é.png", "back\\slash.png", "new\nline.png", "deep/\\n.png"]
    write_sums(tmp_path, {name: f"{i:064x}" for i, name in enumerate(names)})
    assert read_sums(tmp_path) == {name: f"{i:064x}" for i, name in enumerate(names)}
    for text in (b"ab  x\n", b"0" * 64 + b"  ../x\n", b"0" * 64 + b"  x", (b"0" * 64 + b"  x\n") * 2):
        (tmp_path / SUMS).write_bytes(text)
        with pytest.raises(Exception, match="is malformed"):
            read_sums(tmp_path)


# Length


@pytest.mark.usefixtures("here")
def test_a_long_check_shows_progress(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("verify", "f.safetensors").err == ""
    monkeypatch.setattr(command, "_AFTER_SEC", 0.0)
    assert re.match(r"verify f\.safetensors \(MB\) \d+/\d+ ", run("verify", "f.safetensors").err)
    assert run("verify", "f.safetensors", "-q").err == ""


@pytest.mark.slow
def test_a_large_set_is_checked_with_little_memory(tmp_path: Path) -> None:
    num = 100_000
    rows = make_rows([f"{i:06d}" for i in range(num)])
    chunks = (np.full((1000, 3, 32, 32), i % 256, dtype=np.uint8) for i in range(num // 1000))
    write_set(tmp_path / "x.safetensors", rows, chunks, class_names=(), header={})
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    words = [sys.executable, "-m", "corecli", "verify", "x.safetensors"]
    ran = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("x.safetensors\tok\timage set (packed), ")
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert before <= used < 250_000, "kB, for a file of 307 MB"
