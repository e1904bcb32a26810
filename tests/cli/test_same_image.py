"""The same seed gives the same image: at any batch size, in any format, in shards, resumed, one row in a thousand."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ran import Run, refused

from corecli.base.files import sha256_file
from corecli.cli.app import run_line
from corecli.commands.sample import writer
from corecli.data.imageset import open_set

NET = "--set channels=8 --set channel_mult=1,2 --set head_channels=8 --learn-sigma --lr 0.02 --steps 8 --batch-size 32"
TOLD = "--steps 2 --seed 3 --quiet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, its table of 1442 digits, a generator told of it, and two images a row of it in one packed set."""
    folder = tmp_path_factory.mktemp("same")
    f, z, g = (folder / name for name in ("f.safetensors", "z.safetensors", "g.pt"))
    digits = ("--data", "digits:8:train")
    make("train-ssl", "--preset", "tiny", "--steps", 2, "--projector-dim", 16, "--batch-size", 32, *digits, "--out", f)
    make("extract", *digits, "--encoder", f, "--out", z)
    make("train-gen", "--preset", "tiny", *NET.split(), *digits, "--features", z, "--out", g)
    make("sample", *line(folder), "--per-row", 2, "--out", folder / "whole.safetensors")
    return folder


def make(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert run_line([*map(str, words), "--device", "cpu", "-q"]) == 0


def line(folder: Path) -> list[object]:
    return ["--ckpt", folder / "g.pt", "--features", folder / "z.safetensors", *TOLD.split()]


def images_of(spec: Path | str) -> dict[str, torch.Tensor]:
    """The images of a set by key."""
    found = open_set(spec)
    return dict(zip(found.rows.keys, found.read(np.arange(len(found.rows))), strict=True))


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Every image found is the wanted one of its key, but for the rounding of sums that a batch's size may reorder."""
    difference = torch.stack([(image.int() - wanted[key].int()).abs() for key, image in found.items()])
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 1e-3


def test_the_images_are_worth_comparing(folder: Path) -> None:
    whole = images_of(folder / "whole.safetensors")
    assert len(whole) == 2884 == len({image.numpy().tobytes() for image in whole.values()})
    assert torch.stack(list(whole.values())).float().std() > 20


@pytest.mark.parametrize("step", [1000, 100])
def test_one_row_in_a_thousand_made_alone_is_that_of_the_whole_set(run: Run, folder: Path, step: int) -> None:
    assert run("sample", *line(folder), "--rows", f"::{step}", "--per-row", 2, "--out", "some").code == 0
    some = images_of("some")
    assert len(some) == 2 * len(range(0, 1442, step))
    assert_same(some, images_of(folder / "whole.safetensors"))


@pytest.mark.parametrize("batch_size", [1, 7, 50, 512])
def test_at_any_batch_size(run: Run, folder: Path, batch_size: int) -> None:
    assert (
        run(
            "sample",
            *line(folder),
            "--rows",
            "::5" if batch_size > 1 else "::20",
            "--batch-size",
            batch_size,
            "--out",
            "o.npz",
        ).code
        == 0
    )
    assert_same(images_of("o.npz"), images_of(folder / "whole.safetensors"))


def test_in_every_format(run: Run, folder: Path) -> None:
    sets = {"o": "directory", "o.tar": "tar", "o.npz": "npz", "o.safetensors": "packed", "tars": "tar"}
    for out, form in sets.items():
        assert run("sample", *line(folder), "--rows", "::20", "--format", form, "--out", out).code == 0
    for form in ("tar", "packed", "npz"):
        shards = ("--shards", 3, "--format", form, "--batch-size", 20)
        assert run("sample", *line(folder), "--rows", "::20", *shards, "--out", f"{form}s3").code == 0
    wanted = images_of("o")
    for out in sets:
        found = images_of(out)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(image, wanted[key]) for key, image in found.items()), out
    for form in ("tar", "packed", "npz"):
        found = images_of(f"{form}s3")
        assert found.keys() == wanted.keys()
        assert_same(found, wanted)


def test_jobs_of_an_array_make_together_what_one_line_makes(run: Run, folder: Path) -> None:
    words = ("sample", *line(folder), "--per-row", 2)
    ran = run(*words, "--shards", 5, "--out", "one", "--json")
    record = json.loads(ran.out)
    assert (record["path"], record["num"]) == ("one", 2884)
    assert record["images_per_sec"] == pytest.approx(2884 / record["seconds"], rel=1e-2)
    for index in (3, 0, 4, 1):
        assert run(*words, "--shard", f"{index}/5", "--out", "jobs").out == f"jobs/part-{index:06d}.tar\n"
    refused(
        run("inflate", "--synthetic", "jobs", "--out", "m.json"), "inflate", 65, "jobs: only 4 of 5 shards are finished"
    )
    assert run(*words[:-2], "--per-row", 2, "--shards", 5, "--out", "jobs").out == "jobs\n"  # makes the one missing
    assert contents("jobs") == contents("one")
    assert_same(found := images_of("one"), images_of(folder / "whole.safetensors"))
    assert len(found) == 2884
    before = {path: path.stat().st_mtime_ns for path in Path("jobs").iterdir()}
    again = run(*[w for w in words if w != "--quiet"], "--shard", "2/5", "--out", "jobs")
    assert (again.out, again.err) == ("jobs/part-000002.tar\n", "corecli sample: already there, left alone\n")
    assert {path: path.stat().st_mtime_ns for path in Path("jobs").iterdir() if path in before} == before


def contents(folder: str) -> dict[str, bytes]:
    """Every file but the index of tars, which whoever opens them leaves."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if ".index." not in path.name}


def test_the_record_of_a_shard_describes_its_images(run: Run, folder: Path) -> None:
    assert run("sample", *line(folder), "--rows", "::20", "--shards", 2, "--format", "packed", "--out", "o").code == 0
    manifest = json.loads(Path("o/manifest.json").read_text())
    assert (manifest["complete"], manifest["num"], len(manifest["shards"])) == (True, 73, 2)
    for index, record in enumerate(manifest["shards"]):
        beside = json.loads(Path(f"o/part-00000{index}.json").read_text())
        assert len(beside.pop("document_sha256")) == 64
        assert record == beside
        path = Path("o") / record["file"]
        pixels = torch.stack(list(images_of(path).values())).double()
        assert (record["num"], record["blank"], record["bytes"]) == (len(pixels), 0, path.stat().st_size)
        assert record["sha256"] == sha256_file(path)
        assert record["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-3)
        assert record["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-3)
    Path("o/part-000001.safetensors").unlink()
    refused(run("inflate", "--synthetic", "o", "--out", "m.json"), "inflate", 65, "o/part-000001.safetensors: not the")


def test_a_run_stopped_in_a_shard_goes_on_there(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sample", *line(folder), "--rows", "::2", "--shards", 2, "--format", "packed")
    monkeypatch.setattr(writer, "WORK_ROWS", 100)
    assert run(*words, "--out", "alone").code == 0
    make, batches = writer.Maker._images, []

    def stopped(self: Any, given: Any) -> Any:
        for number, batch in enumerate(make(self, given)):
            batches.append(number)
            if len(batches) == 7:  # in the last work file of the first shard
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(writer.Maker, "_images", stopped)
        ran = run(*words, "--out", "o")
    assert (ran.code, ran.out) == (75, "")
    assert "finished shards are kept (the same line resumes)" in ran.err
    assert not Path("o/manifest.json").exists() and list(Path("o/part-000000.safetensors.d").glob("shard-*"))
    assert run(*words, "--out", "o").code == 0
    assert contents("o") == contents("alone")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            "--shards 2 --shard 0/2",
            2,
            "--shard I/N and --shards both give the number of shards (give one of them)",
        ),
        ("--shard 2/2", 2, "--shard '2/2' is not I/N with I below N (the shards of 16 are 0/16 to 15/16)"),
        ("--shard 1", 2, "--shard '1' is not I/N with I below N (the shards of 16"),
        ("--shards 9 --rows 0,1", 2, "2 images cannot fill 9 shards (use 2 shards or fewer)"),
        ("--shards 2 --out o.tar", 2, "o.tar: shards are written to a directory"),
        ("--shards 2 --format directory", 2, "shards are files (set --format to one of npz, packed, tar)"),
        ("--shards 3 --rows 0:9", 73, "made: exists with another config: shards: 2 there, 3 now"),
        ("--shard 0/2 --rows 0:8", 73, "made: exists with another config: rows: 0:9 there, 0:8 now"),
        ("--shard 0/2 --rows 0:8 --force", 73, "made: exists with another config: rows"),
        ("--rows 0:9", 73, "made: exists with another config"),
        ("--shards 2 --out photos", 73, "photos: already exists and is something else"),
    ],
)
def test_shards_that_make_no_set_are_refused(run: Run, folder: Path, words: str, code: int, said: str) -> None:
    Path("photos").mkdir()
    Path("photos/cat.png").write_bytes(b"cat")
    make("sample", *line(folder), "--rows", "0:9", "--shards", 2, "--out", "made")
    before = contents("made")
    refused(run("sample", *line(folder), "--out", "made", *words.split()), "sample", code, said)
    assert contents("made") == before
    assert Path("photos/cat.png").read_bytes() == b"cat"


def test_force_makes_a_shard_or_the_set_anew(run: Run, folder: Path) -> None:
    words = ("sample", *line(folder), "--rows", "0:9", "--out", "o")
    assert run(*words, "--shards", 2).code == 0
    before = contents("o")
    shutil.copy("o/part-000001.tar", "o/part-000000.tar")
    assert run(*words, "--shard", "0/2", "--force").code == 0
    assert contents("o") == before
    assert run(*words, "--shards", 3, "--force").code == 0
    assert len(json.loads(Path("o/manifest.json").read_text())["shards"]) == 3
    assert len(images_of("o")) == 9
