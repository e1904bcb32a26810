"""`probe --mode segment`: colored shapes on noise, found from the patches of encoders that have learned nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ran import Run

from corecli.nets.encoder import build_encoder, save_encoder

COLORS = ((70, 70, 80), (220, 60, 40), (60, 200, 90))  # of the ground, of squares and of discs


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A square and a disc: uint8 [H, W, 3], and their mask, with a line of no class."""
    mask = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for shape in (1, 2):
        side = int(rng.integers(20, 30))
        top, left = (int(rng.integers(0, size - side)) for size in (height, width))
        dy, dx = (abs(a - b - side / 2) for a, b in ((y, top), (x, left)))
        mask[(np.maximum(dy, dx) if shape == 1 else np.hypot(dy, dx)) < side / 2] = shape
    image = np.array(COLORS)[mask] + rng.integers(-40, 40, (height, width, 3))
    mask[height // 2] = 255
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and test images of 64 x 64 and 64 x 80 px with their masks, and two encoders."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, num in (("train", 16), ("test", 6)):
        for number in range(num):
            for folder, values in zip((split, f"{split}-masks"), draw(rng, 64, 64 + 16 * (number % 2)), strict=True):
                (root / folder).mkdir(exist_ok=True)
                Image.fromarray(values).save(root / folder / f"{number:02d}.png")
    for name in ("vit-micro/8", "resnet10-tiny"):
        encoder = build_encoder(name, image_size=64, projector_dim=None)
        save_encoder(root / f"{name[:3]}.safetensors", encoder)
    return root


def line(root: Path, encoder: str = "vit", *more: object) -> list[object]:
    sets = [word for s in ("train", "test") for word in (f"--{s}", root / s, f"--{s}-masks", root / f"{s}-masks")]
    size = ("--crop-px", 48, "--stride-px", 24, "--train-batch", 8, "--warmup-steps", 5, "--lr", 0.02, "--workers", 1)
    return ["probe", "--mode", "segment", "--encoder", root / f"{encoder}.safetensors", *sets, *size, "-q", *more]


def record(run: Run, *words: object) -> dict[str, Any]:
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def constant_miou(root: Path) -> float:
    """The mean IoU of the answer that everything is ground."""
    masks = [np.asarray(Image.open(path)) for path in sorted((root / "test-masks").iterdir())]
    counted = np.concatenate([mask[mask != 255] for mask in masks])
    return float((counted == 0).mean()) / 3


@pytest.mark.parametrize("encoder", ["vit", "res"])
def test_shapes_are_found(run: Run, shapes: Path, encoder: str) -> None:
    found = record(run, *line(shapes, encoder, "--steps", 60))
    assert (found["num_train"], found["num_test"], found["num_classes"]) == (16, 6, 3)
    assert found["miou"] > constant_miou(shapes) + 0.25, found
    assert found["per_class"].keys() == {"0", "1", "2"}
    assert found["miou"] == pytest.approx(np.mean(list(found["per_class"].values())))
    assert found["miou"] < found["pixel_accuracy"] < 1


def test_what_is_printed_and_the_confusion_matrix(run: Run, shapes: Path) -> None:
    words = line(shapes, "vit", "--steps", 6, "--per-class", "--confusion", "c.csv", "--num-classes", 4)
    ran = run(*words)
    assert [row.split("\t")[0] for row in ran.out.splitlines()[:3]] == ["miou", "mean_accuracy", "pixel_accuracy"]
    counts = np.array([row.split(",")[1:] for row in Path("c.csv").read_text().splitlines()[1:]], dtype=float)
    masks = [np.asarray(Image.open(path)) for path in (shapes / "test-masks").iterdir()]
    expected = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)[:4]
    assert counts.sum(1).tolist() == expected.tolist()
    found = dict(row.split("\t")[:2] for row in ran.out.splitlines())
    assert float(found["pixel_accuracy"]) == pytest.approx(counts.trace() / counts.sum(), rel=1e-4)
    assert run(*words).out == ran.out


def test_several_test_sets_each_with_its_masks(run: Run, shapes: Path) -> None:
    more = ("--test", f"own={shapes}/train", "--test-masks", f"own={shapes}/train-masks")
    rows = [row.split("\t") for row in run(*line(shapes, "vit", "--steps", 6, *more)).out.splitlines()]
    assert [row[0] for row in rows] == [str(shapes / "test")] * 3 + ["own"] * 3


def test_bad_input_is_refused(run: Run, shapes: Path, tiny: Path) -> None:
    def refused(code: int, message: str, *words: object) -> None:
        ran = run(*words)
        assert (ran.code, ran.out) == (code, "")
        assert message in ran.err

    steps = ("--steps", 6)
    short = line(shapes, "vit", *steps)
    short[short.index("--test-masks") + 1] = shapes / "train"
    refused(65, "a mask stores a class number in each pixel, and this is a PNG file of mode RGB", *short)
    short[short.index("--train-masks") + 1] = shapes / "test-masks"
    refused(65, "10 of 16 images have no mask, such as 06", *short, "--dry-run")
    refused(
        65, "a pixel has class 2, but there are 2 classes, from 0 on", *line(shapes, "vit", *steps, "--num-classes", 2)
    )
    refused(2, "a warm-up of 5 steps is not shorter than training, 3 steps", *line(shapes, "vit", "--steps", 3))
    refused(2, "--image-size does not apply to --mode segment", *line(shapes, "vit", *steps, "--image-size", 8))
    refused(2, "--k does not apply to --mode segment", *line(shapes, "vit", *steps, "--k", 8))
    z = tiny / "z.safetensors"
    refused(2, "--mode segment needs --encoder", "probe", "--mode", "segment", "--train", shapes, "--test", shapes)
    refused(2, "this is a feature table", "probe", "--mode", "segment", "--train", z, "--test", z)
    digits = ("probe", "--mode", "segment", "--encoder", tiny / "f.safetensors", "--test", "digits:8")
    refused(2, "has no masks of its own", *digits, "--train", "digits:8")
    refused(65, "masks must be image files", *digits, "--train", "digits:8", "--train-masks", "digits:8")
