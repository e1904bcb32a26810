"""Folders of photographs of different sizes and kinds, as they are, through the verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
from photographs import make_photographs
from ran import Run, refused

from corecli.base import checkpoint

SSL = ("train-ssl", "--preset", "tiny", "--steps", 3, "--batch-size", 8, "--log-every", 2, "--projector-dim", 16, "-q")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("more", [(), ("--method", "dino", "--set", "prototypes=16", "--views", "2g2l")], ids=str)
def test_an_encoder_trained_on_crops_of_whole_photographs_is_the_same_for_any_number_of_workers(
    run: Run, photographs: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    prints = []
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.safetensors"
        ran = run(*SSL, "--data", photographs, "--view-px", 16, *more, "--workers", workers, "--out", out)
        assert ran.code == 0, ran.err
        header = checkpoint.require_header(out, kind="encoder")
        prints.append(header["fingerprint"])
    assert len(set(prints)) == 1
    preprocessing = header["spec"]["preprocessing"]
    assert (preprocessing["image_size"], preprocessing["resize"]) == (16, 18)


def test_photographs_without_a_size_of_views_are_refused(run: Run, photographs: Path, tmp_path: Path) -> None:
    line = (*SSL, "--data", photographs, "--out", tmp_path / "f.safetensors")
    refused(run(*line), "train-ssl", 65, "differ in size", "--view-px")
    refused(run(*line, "--eval-resize", 20), "train-ssl", 2, "--eval-resize needs --view-px")
    refused(run(*line, "--view-px", 16, "--eval-resize", 12), "train-ssl", 2, "--eval-resize 12 is below --view-px 16")
