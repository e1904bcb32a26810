"""Command lines run as a user would run them, but in this process, and the small files they work on."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ran import Ran, Run

from corecli.cli.app import run_line
from corecli.data.imageset import open_set


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run("sample", "--ckpt", path)` in an empty folder, on the CPU, without other CORECLI_* variables."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("CORECLI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORECLI_DEVICE", "cpu")

    def one(*words: object) -> Ran:
        capfd.readouterr()
        code = run_line([str(word) for word in words])
        out, err = capfd.readouterr()
        return Ran(code=code, out=out, err=err)

    return one


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every kind of file, from 8-pixel digits: encoders f, f1, vit, features z and z1, generators, sets."""
    folder = tmp_path_factory.mktemp("tiny")
    data, size = "digits:8:test", ("--batch-size", "32", "--steps", "2")
    ssl = ("train-ssl", "--preset", "tiny", *size, "--projector-dim", "16", "--data", data)
    net = ("--set", "channel_mult=1,2", "--set", "head_channels=16", "--learn-sigma", "--lr", "0.02")  # not yet blank
    gen = ("train-gen", "--preset", "tiny", *size, *net, "--steps", "8", "--data", data)
    z = folder / "z.safetensors"
    _make(*ssl, "--out", folder / "f.safetensors")
    _make(*ssl, "--seed", "1", "--out", folder / "f1.safetensors")
    for name, encoder, rows in (("z", "f", data), ("z1", "f1", data), ("other_rows", "f", "digits:8:train")):
        _make(
            "extract",
            "--data",
            rows,
            "--encoder",
            folder / f"{encoder}.safetensors",
            "--out",
            folder / f"{name}.safetensors",
        )
    _make(*gen, "--features", z, "--out", folder / "g.pt")
    _make(*gen, "--features", z, "--condition-dropout", "0", "--out", folder / "undropped.pt")
    _make(*gen, "--out", folder / "unconditional.pt")
    _make(
        "sample", "--ckpt", folder / "g.pt", "--features", z, "--rows", "::60", "--steps", "1", "--out", folder / "syn"
    )
    vit = ("--backbone", "vit-micro/4", "--method", "supervised")
    _make("train-ssl", "--preset", "tiny", *size, *vit, "--data", data, "--out", folder / "vit.safetensors")
    _make("inflate", "--real", data, "--materialize", folder / "real.safetensors")
    mixed = ("inflate", "--real", folder / "real.safetensors", "--synthetic", folder / "syn")
    _make(*mixed, "--out", folder / "mix.json")
    _make(*mixed, "--missing", "drop", "--out", folder / "pairs.json")
    _save_masks(folder, data)
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of twenty small PNG files: good, flat (no classes), one (class), rect, mixed (in size), and bad ones."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for i in range(20):
        by_class = f"{'ab'[i % 2]}/{i:02d}.png"
        for name in (f"good/{by_class}", f"flat/{i:02d}.png", f"one/a/{i:02d}.png"):
            _png(root / name, rng, 8, 8)
        _png(root / f"rect/{by_class}", rng, 12, 8)
        _png(root / f"mixed/{by_class}", rng, 8 + i // 10, 8)
    (root / "empty" / "a").mkdir(parents=True)
    for name in ("garbage", "truncated", "bomb", "duplicate"):
        shutil.copytree(root / "good", root / name)
    (root / "garbage/a/00.png").write_bytes(b"this is no image")
    whole = (root / "good/a/00.png").read_bytes()
    (root / "truncated/a/00.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (9000, 9000)).save(root / "bomb/a/00.png")
    Image.new("RGB", (8, 8)).save(root / "duplicate/a/00.bmp")
    with tarfile.open(root / "climbing.tar", "w") as archive:
        for name in ("a/00.png", "../../evil.png"):
            info = tarfile.TarInfo(name)
            info.size = len(whole)
            archive.addfile(info, io.BytesIO(whole))
    return root


def _make(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert run_line([*map(str, words), "--quiet", "--device", "cpu"]) == 0


def _save_masks(folder: Path, data: str) -> None:
    """Eight digits in `images`, and in `masks` where they have ink, or much of it; their lowest rows are no class."""
    for number, image in enumerate(open_set(data).read(np.arange(8)).permute(0, 2, 3, 1).numpy()):
        mask = np.digitize(image[..., 0], (60, 180)).astype(np.uint8)
        mask[-1] = 255
        for name, values in (("images", image), ("masks", mask)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(folder / name / f"{number}.png")


def _png(path: Path, rng: np.random.Generator, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
