"""Pipelines of diffusers sampled through the command line: tiny ones of every kind, with random weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Ran, Run, refused
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

import pipelines

from corecli.data.imageset import ImageSet, open_set

KINDS = {name.removeprefix("save_"): save for name, save in vars(pipelines).items() if name.startswith("save_")}
CAPTIONS = ["a dog in the snow", "a cat", "two birds on a wire and a long tail of words that no one reads"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind of pipeline, and captions."""
    root = tmp_path_factory.mktemp("pipelines")
    for name, save in KINDS.items():
        save(root / name)
    lines = [json.dumps({"id": f"c/{i}", "caption": text}) for i, text in enumerate(CAPTIONS[:2])]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    (root / "captions.txt").write_text("\n\n".join(CAPTIONS))
    return root


@pytest.fixture
def sample(run: Run, folder: Path, tiny: Path) -> Run:
    """`sample(kind, *options)` from that kind of pipeline, of what it takes."""
    given = {
        "text_to_image": ("--captions", folder / "captions.jsonl"),
        "unclip_text": ("--captions", folder / "captions.jsonl"),
        "unconditional": ("--num", "4"),
    }

    def one(kind: str, *more: object) -> Ran:
        of_images = ("--images", tiny / "real.safetensors", "--rows", "3,9")
        source = given.get(kind, of_images)
        per_row = () if kind == "unconditional" else ("--per-row", "2")
        return run("sample", "--ckpt", f"diffusers:{folder / kind}", *source, *per_row, "--steps", "2", *more)

    return one


def made(ran: Ran, path: str = "o") -> tuple[ImageSet, torch.Tensor]:
    assert ran.code == 0, ran.err
    found = open_set(path)
    return found, found.read(np.arange(len(found.rows)))


def nearly_equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Up to the rounding of a sum that a batch's size may reorder."""
    return x.shape == y.shape and int((x.int() - y.int()).abs().max()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_sampled_alike_at_any_batch_size(sample: Run, tiny: Path, kind: str) -> None:
    found, images = made(sample(kind, "--out", "o", "-q"))
    assert images.shape == (4, 3, pipelines.SIZE_PX, pipelines.SIZE_PX)
    assert len({image.numpy().tobytes() for image in images}) == 4
    assert images.float().std() > 5
    _, alone = made(sample(kind, "--out", "p", "-q", "--batch-size", "1"), "p")
    assert nearly_equal(images, alone)
    _, seeded = made(sample(kind, "--out", "q", "-q", "--seed", "1"), "q")
    assert not nearly_equal(images, seeded)
    if kind == "unconditional":
        assert found.rows.keys == [f"{i:06d}" for i in range(4)]
    elif kind in ("text_to_image", "unclip_text"):
        assert sorted(found.rows.keys) == ["c/0@0", "c/0@1", "c/1@0", "c/1@1"]
        assert sorted(set(found.rows.groups)) == ["c/0", "c/1"]
    else:
        real = open_set(str(tiny / "real.safetensors"))
        chosen = [real.rows.keys[i] for i in (3, 9)]
        assert sorted(found.rows.keys) == sorted(f"{key}@{v}" for key in chosen for v in (0, 1))
        labels = dict(zip(real.rows.keys, real.rows.labels.tolist(), strict=True))
        assert [labels[group] for group in found.rows.groups] == found.rows.labels.tolist()
        assert found.class_names == real.class_names


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("text_to_image", "--guidance 1"),
        ("text_to_image", "--negative-prompt rain"),
        ("text_to_image", "--sampler dpmpp"),
        ("text_to_image", "--sampler ddpm"),
        ("text_to_image", "--sampler euler"),
        ("text_to_image", "--sampler heun"),
        ("text_to_image", "--sampler unipc"),
        ("text_to_image", "--sampler ddim --eta 1"),
        ("text_to_image", "--precision bf16"),
        ("text_to_image", "--precision fp16"),
        ("text_to_image", "--set timestep_spacing=trailing"),
        ("text_to_image", "--set height=24 --set width=24"),
        ("text_to_image", "--image-size 8"),
        ("image_variation", "--guidance 1"),
        ("unclip_images", "--guidance 2"),
        ("unclip_images", "--set noise_level=500"),
        ("versatile_variation", "--guidance 1"),
    ],
)
def test_options_change_the_image(sample: Run, kind: str, more: str) -> None:
    _, plain = made(sample(kind, "--out", "o", "-q"))
    _, other = made(sample(kind, *more.split(), "--out", "p", "-q"), "p")
    assert plain.shape != other.shape or not torch.equal(plain, other)
    assert (other.float().flatten(1).std(1) > 0).all()


def test_an_image_follows_its_own_condition(run: Run, sample: Run, folder: Path, tiny: Path) -> None:
    """What a row gives does not depend on the others; another caption or image under the same key gives another."""
    found, images = made(sample("text_to_image", "--out", "o", "-q"))
    single, image = made(sample("text_to_image", "--rows", "1", "--per-row", "1", "--out", "p", "-q"), "p")
    assert nearly_equal(images[found.rows.keys.index(single.rows.keys[0])][None], image)
    Path("other.jsonl").write_text('{"id": "c/1", "text": "a horse"}\n')
    line = ("sample", "--ckpt", f"diffusers:{folder / 'text_to_image'}", "--steps", "2", "-q")
    _, another = made(run(*line, "--captions", "other.jsonl", "--out", "q"), "q")
    assert not nearly_equal(image, another)


def test_a_larger_image_is_its_square_made_smaller(sample: Run) -> None:
    _, large = made(sample("text_to_image", "--set", "height=16", "--set", "width=32", "--out", "o", "-q"))
    _, small = made(
        sample("text_to_image", "--set", "height=16", "--set", "width=32", "--image-size", "8", "--out", "p", "-q"), "p"
    )
    square = torch.nn.functional.interpolate(
        large[..., 8:24].float(), size=(8, 8), mode="bicubic", antialias=True
    ).clamp(0, 255)
    assert (square - small.float()).abs().max() <= 1


def test_images_of_any_size_are_varied(sample: Run, run: Run, folder: Path, sets: Path) -> None:
    line = ("sample", "--ckpt", f"diffusers:{folder / 'image_variation'}", "--steps", "1", "-q", "--out", "o")
    found, _ = made(run(*line, "--images", sets / "mixed", "--rows", "::8"))
    assert len(found.rows) == 3


def test_long_captions_are_cut_and_counted_and_other_notes_are_silent(run: Run, folder: Path) -> None:
    line = ("sample", "--ckpt", f"diffusers:{folder / 'text_to_image'}", "--steps", "1", "--out", "o")
    ran = run(*line, "--captions", folder / "captions.txt")
    found, _ = made(ran)
    assert found.rows.keys == ["000000@0", "000001@0", "000002@0"]
    note = f"corecli sample: 1 of 3 captions are longer than {pipelines.TOKENS} tokens and were cut"
    assert [line for line in ran.err.splitlines() if not line.startswith("sample ")] == [note]


def test_a_sweep_of_guidances_and_a_finished_target(sample: Run) -> None:
    ran = sample("text_to_image", "--guidance", "2,8", "--out", "syn", "-q")
    assert ran.out.splitlines() == ["syn-g2", "syn-g8"]
    assert not torch.equal(made(ran, "syn-g2")[1], made(ran, "syn-g8")[1])
    assert "left alone" in sample("text_to_image", "--guidance", "2,8", "--out", "syn").err
    differing = sample("text_to_image", "--guidance", "2", "--steps", "3", "--out", "syn-g2")
    assert differing.code == 73


@pytest.mark.parametrize(
    ("kind", "line", "code", "message"),
    [
        ("text_to_image", "--images $tiny", 2, "makes images from captions, not from images (give --captions)"),
        ("text_to_image", "--num 2", 2, "makes images from captions (give --captions)"),
        ("image_variation", "--captions $captions", 2, "makes images from images, not from captions (give --images)"),
        ("unconditional", "--captions $captions", 2, "makes images from nothing (drop --captions)"),
        ("unconditional", "--rows 1", 2, "--rows and --order need --captions or --images"),
        ("text_to_image", "--captions $captions --images $tiny", 2, "--captions and --images exclude each other"),
        ("text_to_image", "--captions $captions --spacing even", 2, "--spacing does not apply to a pipeline"),
        (
            "text_to_image",
            "--captions $captions --eta 1 --sampler euler",
            2,
            "EulerDiscreteScheduler has no option eta",
        ),
        (
            "text_to_image",
            "--captions $captions --sampler dpmpp-sde",
            2,
            "no scheduler for the dpmpp-sde sampler (use ddim,",
        ),
        ("text_to_image", "--captions $captions --set noise_level=1", 2, "has an option 'noise_level'"),
        ("image_variation", "--images $tiny --negative-prompt x", 2, "has no option negative_prompt"),
        ("unconditional", "--guidance 2", 2, "has no option guidance_scale"),
        ("text_to_image", "--captions nowhere.txt", 66, "no such file"),
        ("nowhere", "--num 2", 66, "no such folder"),
        ("", "--num 2", 65, "not a pipeline of diffusers: model_index.json is missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    run: Run, folder: Path, tiny: Path, kind: str, line: str, code: int, message: str
) -> None:
    words = line.replace("$tiny", str(tiny / "real.safetensors")).replace("$captions", str(folder / "captions.txt"))
    ran = run("sample", "--ckpt", f"diffusers:{folder / kind}", *words.split(), "--out", "o", "-q")
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("model_index.json", "not a pipeline of diffusers: model_index.json is missing"),
        ("unet", "the part unet is missing"),
        ("unet/config.json", "the part unet has no config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "the part unet has no weights"),
        ("text_encoder/config.json", "the part text_encoder has no config.json"),
        ("text_encoder/model.safetensors", "the part text_encoder has no weights"),
        ("tokenizer/tokenizer.json", "the part tokenizer has no vocabulary"),
        ("tokenizer/tokenizer_config.json", "the part tokenizer has no tokenizer_config.json"),
        ("vae/config.json", "the part vae has no config.json"),
        ("scheduler/scheduler_config.json", "the part scheduler is missing"),
    ],
)
def test_a_missing_part_is_named(run: Run, folder: Path, remove: str, message: str) -> None:
    shutil.copytree(folder / "text_to_image", "damaged")
    removed = Path("damaged") / remove
    shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
    line = ("sample", "--ckpt", "diffusers:damaged", "--captions", folder / "captions.txt", "--out", "o")
    for more in ((), ("--dry-run",)):
        refused(run(*line, *more), "sample", 65, f"damaged: {message}", "copy or download the whole folder)")


@pytest.mark.parametrize(
    ("weights", "removed", "message"),
    [
        ("unet/diffusion_pytorch_model", None, "Unable to load weights"),
        ("unet/diffusion_pytorch_model", "conv_in.bias", "1 weights of the part unet are missing: conv_in.bias"),
        ("text_encoder/model", "embeddings.token_embedding.weight", "1 weights of the part text_encoder are missing"),
    ],
)
def test_incomplete_weights_are_refused(
    run: Run, folder: Path, weights: str, removed: str | None, message: str
) -> None:
    shutil.copytree(folder / "text_to_image", "damaged")
    file = Path(f"damaged/{weights}.safetensors")
    if removed is None:
        os.truncate(file, 300)
    else:
        kept = {name: tensor for name, tensor in load_file(file).items() if not name.endswith(removed)}
        save_file(kept, file, metadata={"format": "pt"})
    ran = run("sample", "--ckpt", "diffusers:damaged", "--captions", folder / "captions.txt", "--out", "o", "-q")
    refused(ran, "sample", 65, f"damaged: the pipeline cannot be loaded: {message}", "the whole folder)")


def test_an_id_that_is_nowhere_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = run("sample", "--ckpt", "diffusers:nobody/nothing", "--num", "1", "--out", "o")
    assert ran.code == 69
    assert "hf download nobody/nothing" in ran.err
    assert ran.err.count("\n") == 1


def test_without_transformers_the_extra_is_named(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corecli.nets.weights import pipelines as pipeline_files

    monkeypatch.setattr(pipeline_files, "find_spec", lambda name: None)
    line = ("sample", "--captions", folder / "captions.txt", "--out", "o", "--ckpt")
    ran = run(*line, f"diffusers:{folder / 'text_to_image'}")
    assert ran.code == 69
    assert "needs transformers (pip install 'corecli[text]')" in ran.err


def test_weights_of_half_size_alone_are_found(run: Run, folder: Path) -> None:
    shutil.copytree(folder / "text_to_image", "half")
    for path in Path("half").rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    line = ("sample", "--ckpt", "diffusers:half", "--captions", folder / "captions.jsonl", "--steps", "1", "-q")
    assert len(made(run(*line, "--out", "o"))[0].rows) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "caption": "A dog."}\n{"id": "b", "cap\n', "line 2 is not JSON: "),
        ('{"id": "a", "caption": "A dog."}\n{"id": "b"}\n', "line 2 has no caption (write an object such as"),
        ('{"id": "a", "caption": "A dog."}\n' * 2, "duplicate key 'a' ("),
        ("\n", "the file has no captions (write an object such as"),
    ],
)
def test_captions_with_bad_lines(run: Run, folder: Path, text: str, message: str) -> None:
    Path("bad.jsonl").write_text(text)
    line = ("sample", "--ckpt", f"diffusers:{folder / 'text_to_image'}", "--captions", "bad.jsonl", "--out", "o")
    for more in ((), ("--dry-run",)):
        refused(run(*line, *more), "sample", 65, f"bad.jsonl: {message}")


def test_names_that_no_file_can_have_are_refused_before_images_are_made(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bad.jsonl").write_text('{"id": "a/../b", "caption": "A dog."}\n')
    line = (
        "sample",
        "--ckpt",
        f"diffusers:{folder / 'text_to_image'}",
        "--captions",
        "bad.jsonl",
        "--steps",
        "1",
        "-q",
    )
    assert run(*line, "--out", "o.npz").code == 0
    monkeypatch.setattr("corecli.commands.sample.pipeline.Pipelines.prepare", None)
    for more in ((), ("--format", "tar"), ("--shards", "1")):
        refused(run(*line, "--out", "o", *more), "sample", 65, "o: key 'a/../b@0' cannot be a file name (keys are")
    assert not Path("o").exists()
