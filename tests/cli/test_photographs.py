"""Folders of photographs of different sizes and kinds, as they are, through the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import make_photographs
from PIL import Image
from ran import Run, refused
from torchvision import transforms

from corecli.base import checkpoint
from corecli.commands.parts.inputs import fitted
from corecli.data.features import load_features
from corecli.data.imageset import open_set
from corecli.nets.backbones import timm_preprocessing
from corecli.nets.encoder import build_encoder, load_encoder, save_encoder

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


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "f.safetensors"
    built = build_encoder("resnet10-tiny", image_size=24, projector_dim=None)
    built.set_resize(28)
    save_encoder(path, built)
    return path


def test_features_are_those_of_torchvisions_resize_and_crop(
    run: Run, photographs: Path, encoder: Path, tmp_path: Path
) -> None:
    ran = run("extract", "--data", photographs, "--encoder", encoder, "--out", tmp_path / "z.safetensors", "-q")
    assert ran.code == 0, ran.err
    table = load_features(tmp_path / "z.safetensors")
    crop = transforms.Compose([transforms.Resize(28, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(24)])
    image_set = open_set(photographs)
    pictures = [Image.fromarray(np.array(image_set.picture(row).pixels())) for row in range(len(image_set.rows))]
    images = torch.stack([torch.tensor(np.asarray(crop(picture))).permute(2, 0, 1) for picture in pictures])
    torch.testing.assert_close(table.features, load_encoder(encoder).encode(images))


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "resnet18.a1_in1k", "vit_base_patch16_clip_224.openai"])
def test_the_evaluation_crop_is_that_of_timm(tmp_path: Path, name: str) -> None:
    timm, data = pytest.importorskip("timm"), pytest.importorskip("timm.data")
    folder = make_photographs(tmp_path, num=6, least_px=150, most_px=400)
    config = data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = data.create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    image_set = open_set(folder)
    images = fitted(image_set, timm_preprocessing(name, None), name).read(np.arange(6))
    for row, image in enumerate(images):
        expected = transform(Image.fromarray(np.array(image_set.picture(row).pixels())))
        torch.testing.assert_close(image / 255, expected)


def test_an_encoder_is_fine_tuned_on_photographs(run: Run, photographs: Path, encoder: Path, tmp_path: Path) -> None:
    sets = ("--train", photographs, "--test", photographs)
    line = ("probe", "--encoder", encoder, *sets, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 8)
    ran = run(*line, "--mode", "finetune")
    assert ran.code == 0 and "top1" in ran.out, ran.err


def test_a_generator_learns_photographs_at_one_size(run: Run, photographs: Path, tmp_path: Path) -> None:
    line = ("train-gen", "--data", photographs, "--preset", "tiny", "--steps", 2, "--batch-size", 4, "-q")
    ran = run(*line, "--image-size", 16, "--out", tmp_path / "g.safetensors")
    assert ran.code == 0, ran.err
    assert checkpoint.require_header(tmp_path / "g.safetensors", kind="generator")


def test_every_verb_that_reads_images_takes_the_folder_as_it_is(
    run: Run, photographs: Path, encoder: Path, tmp_path: Path
) -> None:
    lines = (
        ("probe", "--encoder", encoder, "--train", photographs, "--test", photographs, "--mode", "logistic"),
        ("fid", "--reference", photographs, "--samples", photographs, "--extractor", encoder),
        ("show", photographs, "--out", tmp_path / "sheet.png"),
        ("inflate", "--real", photographs, "--repeat", 2, "--out", tmp_path / "mix.json"),
        (*SSL, "--data", tmp_path / "mix.json", "--view-px", 16, "--out", tmp_path / "mixed.safetensors"),
    )
    for line in lines:
        ran = run(*line)
        assert ran.code == 0, (line[0], ran.err)
    refused(
        run("train-gen", "--data", photographs, "--preset", "tiny", "--steps", 2, "--out", tmp_path / "g.pt"),
        "train-gen",
        65,
        "differ in size",
        "--image-size",
    )


def test_the_log_has_the_share_of_time_spent_waiting(run: Run, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    assert run(*SSL, "--data", photographs, "--view-px", 16, "--out", out).code == 0
    log = [json.loads(line) for line in (tmp_path / "f.safetensors.d" / "log.jsonl").read_text().splitlines()]
    assert all(0 <= record["data_wait"] <= 1 for record in log) and any(record["data_wait"] > 0 for record in log)
