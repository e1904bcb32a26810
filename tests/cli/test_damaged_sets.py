"""Verbs refuse a set with a flipped bit, wherever it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ran import Run, refused

from corecli.data.imageset import write_set
from corecli.data.rows import make_rows

NUM = 60


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    keys = [f"{'cat' if i < 30 else 'dog'}/{i:04d}" for i in range(NUM)]
    images = np.random.default_rng(0).integers(0, 256, (NUM, 3, 16, 16), dtype=np.uint8)
    rows = make_rows(keys, labels=np.arange(NUM) // 30)
    write_set(path, rows, iter([images]), class_names=("cat", "dog"), header={"identity": {"seed": 3}})
    return path


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (b"seed", "the header does not match its hash"),
        (b'dog\\"]', "the header does not match its hash"),
        (b'"labels"', "the header does not match its hash"),
        (b"cat/0003", "values of keys.bytes 0 to 479 do not match their hash"),
        (None, "images 0 to 59 do not match their hash"),
    ],
)
def test_a_flipped_bit_is_refused(packed: Path, run: Run, tmp_path: Path, what: bytes | None, reason: str) -> None:
    data = bytearray(packed.read_bytes())
    data[-9 if what is None else data.index(what) + 1] ^= 4
    packed.write_bytes(data)
    refused(run("inflate", "--real", packed, "--materialize", "copy", "-q"), "inflate", 65, "x.safetensors", reason)
    assert not (tmp_path / "copy").exists()
    assert run("verify", packed).code == 65


def test_the_intact_set_is_read(packed: Path, run: Run, tmp_path: Path) -> None:
    assert run("inflate", "--real", packed, "--materialize", "copy", "-q").code == 0
    assert len(list((tmp_path / "copy").rglob("*.png"))) == NUM
    assert run("verify", packed, "copy").code == 0


def test_a_flipped_bit_in_the_pixels_of_a_png_is_refused(run: Run) -> None:
    """Pillow ignores the checksums of the chunks that hold pixels."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save("a.png")
    data = bytearray(Path("a.png").read_bytes())
    data[data.index(b"IEND") - 5] ^= 1  # the last byte of the checksum of IDAT
    Path("set").mkdir()
    Path("set/a.png").write_bytes(data)
    Image.open("set/a.png").load()
    refused(run("inflate", "--real", "set", "--materialize", "copy.npz", "-q"), "inflate", 65, "a.png: ")
    assert not Path("copy.npz").exists()


def test_a_flipped_bit_in_an_exported_folder_is_refused(run: Run) -> None:
    pytest.importorskip("diffusers")
    train = ("train-gen", "--data", "digits:8:test", "--preset", "tiny", "--steps", "1", "--batch-size", "8", "--quiet")
    assert run(*train, "--out", "g.pt", "--export-diffusers", "d").code == 0
    line = ("sample", "--num", "1", "--steps", "1", "--quiet", "--ckpt")
    assert run(*line, "d", "--out", "good").code == 0
    weights = Path("d/unet/diffusion_pytorch_model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    for ckpt in ("d", "diffusers:d"):
        refused(run(*line, ckpt, "--out", "o"), "sample", 65, f"{weights}: the content does not match its hash")
    assert not Path("o").exists()
