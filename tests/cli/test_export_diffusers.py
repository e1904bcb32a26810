"""train-gen --export-diffusers: what diffusers loads, and what sample makes from the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Run, refused

from corecli.base import checkpoint
from corecli.data.imageset import open_set
from corecli.generators.parts.generator import build_saved

diffusers = pytest.importorskip("diffusers")
NET = "--preset tiny --batch-size 16 --steps 3 --lr 0.02 --set channels=8 --set channel_mult=1,2 --set head_channels=8"


def line(tiny: Path, *more: object) -> tuple[object, ...]:
    return ("train-gen", *NET.split(), "--data", "digits:8:test", "-q", "--out", "g.pt", *more)


def images(spec: str) -> torch.Tensor:
    found = open_set(spec)
    return found.read(np.arange(len(found.rows)))


def test_the_network_and_the_images_are_the_same_there_and_here(run: Run, tiny: Path) -> None:
    features = ("--features", tiny / "z.safetensors")
    ran = run(*line(tiny, *features, "--export-diffusers", "d"))
    assert (ran.code, ran.out) == (0, "g.pt\nd\n"), ran.err
    tensors, header = checkpoint.load(Path("g.pt"), kind="generator")
    generator = build_saved(header, tensors)
    x, t, vector = torch.randn(4, 3, 8, 8), torch.tensor([0, 9, 500, 999]), torch.randn(4, generator.network.width)
    unet = diffusers.UNet2DModel.from_pretrained("d/unet").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            unet(x, t, class_labels=vector).sample, generator.network(x, t, vector), atol=1e-5, rtol=0
        )
    scheduler = diffusers.DDIMScheduler.from_pretrained("d/scheduler")
    assert scheduler.config.prediction_type == "epsilon"
    sample = (*features, "--rows", "::60", "--steps", 2, "-q")
    for place, out in (("g.pt", "a.npz"), ("d", "b.npz"), ("diffusers:d", "c.npz")):
        assert run("sample", "--ckpt", place, *sample, "--out", out).code == 0
    assert torch.equal(images("b.npz"), images("a.npz")) and torch.equal(images("c.npz"), images("a.npz"))


def test_a_target_that_is_there_is_exported_and_a_folder_of_it_left_alone(run: Run, tiny: Path) -> None:
    assert run(*line(tiny)).code == 0
    assert run(*line(tiny, "--export-diffusers", "d")).out == "g.pt\nd\n"
    before = {path: path.stat().st_mtime_ns for path in Path("d").rglob("*")}
    assert Path("d/model_index.json") in before
    assert run(*line(tiny, "--export-diffusers", "d")).code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("d").rglob("*")} == before
    assert run("sample", "--ckpt", "d", "--num", 3, "--steps", 2, "--out", "o.npz", "-q").code == 0
    pipeline = diffusers.DiffusionPipeline.from_pretrained("d")
    assert type(pipeline).__name__ == "DDIMPipeline"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--arch dit --set size=tiny", 2, "diffusers has no classes for dit (adm and ldm can be exported, with"),
        ("--objective flow", 2, "diffusers has no classes for adm flow"),
        ("--export-diffusers photos", 73, "photos: already exists and is something else"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_training(
    run: Run, tiny: Path, words: str, code: int, said: str
) -> None:
    Path("photos").mkdir()
    Path("photos/cat.png").write_bytes(b"cat")
    bare = ("train-gen", "--data", "digits:8:test", "--batch-size", 16, "--out", "g.pt", "--export-diffusers", "d")
    refused(run(*bare, *words.split()), "train-gen", code, said)
    assert sorted(path.name for path in Path().iterdir()) == ["photos"]
