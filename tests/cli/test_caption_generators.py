"""Test generators conditioned on captions on the command line, by bytes or by a frozen text encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Ran, Run

from corecli.base import checkpoint
from corecli.data.imageset import ImageSet, open_set

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NET = "--preset tiny --set channels=16 --set head_channels=16 --data digits:8:test --batch-size 16 --preview-every 2 -q"


def write_captions(path: str, texts: dict[str, str]) -> None:
    Path(path).write_text("".join(json.dumps({"id": key, "caption": text}) + "\n" for key, text in texts.items()))


@pytest.fixture
def captions(run: Run) -> dict[str, str]:
    """Of the digits, in all.jsonl; and three to make images of, in some.jsonl."""
    rows = open_set("digits:8:test").rows
    captions = {key: f"the digit {WORDS[label]}" for key, label in zip(rows.keys, rows.labels.tolist(), strict=True)}
    write_captions("all.jsonl", captions)
    write_captions("some.jsonl", {f"c/{i}": f"digit {WORDS[i]}" for i in range(3)})
    return captions


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's text encoder and tokenizer in one folder, with tiny random weights."""
    pytest.importorskip("transformers")
    import pipelines

    folder = tmp_path_factory.mktemp("clip")
    pipelines.write_clip_text(folder)
    return folder


def train(run: Run, *more: object, steps: int = 4) -> Ran:
    return run("train-gen", *NET.split(), "--captions", "all.jsonl", "--steps", steps, "--lr", "0.02", *more)


def sample(run: Run, ckpt: str, out: str, *more: object, captions: str = "some.jsonl") -> tuple[ImageSet, torch.Tensor]:
    line = ("sample", "--ckpt", ckpt, "--captions", captions, "--steps", "3", "-q", "--out", out)
    ran = run(*line, *more)
    assert ran.code == 0, ran.err
    found = open_set(out)
    return found, found.read(np.arange(len(found.rows)))


def nearly_equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Up to the rounding of a sum that a batch's size may reorder."""
    return x.shape == y.shape and int((x.int() - y.int()).abs().max()) <= 1


def check_images(run: Run, ckpt: str, *more: object) -> None:
    """An image is a function of the seed, the id, the variant and the caption; not of the others or of the batch."""
    found, images = sample(run, ckpt, "o.npz", "--per-row", "2", *more)
    assert found.rows.keys == [f"c/{i}@{v}" for v in (0, 1) for i in range(3)]
    assert found.rows.groups == [f"c/{i}" for _ in (0, 1) for i in range(3)]
    assert len({image.numpy().tobytes() for image in images}) == 6
    assert nearly_equal(images, sample(run, ckpt, "p.npz", "--per-row", "2", "--batch-size", "1", *more)[1])
    assert nearly_equal(images[[1]], sample(run, ckpt, "q.npz", "--rows", "1", *more)[1])
    assert not nearly_equal(images[:3], sample(run, ckpt, "r.npz", "--guidance", "4", *more)[1])
    assert not nearly_equal(images[:3], sample(run, ckpt, "s.npz", "--seed", "1", *more)[1])
    write_captions("other.jsonl", {f"c/{i}": f"digit {WORDS[i + 1]}" for i in range(3)})
    assert not nearly_equal(images[:3], sample(run, ckpt, "t.npz", *more, captions="other.jsonl")[1])


def test_captions_read_as_bytes(run: Run, captions: dict[str, str]) -> None:
    ran = train(run, "--out", "g.pt")
    assert ran.code == 0, ran.err
    check_images(run, "g.pt")


def test_a_frozen_text_encoder(run: Run, captions: dict[str, str], clip: Path) -> None:
    shutil.copytree(clip, "clip")
    assert train(run, "--text-encoder", "clip", "--out", "g.pt").code == 0
    condition = checkpoint.require_header(Path("g.pt"), kind="generator")["condition"]
    assert (condition["kind"], condition["text_encoder"], len(condition["fingerprint"])) == ("captions", "clip", 64)
    check_images(run, "g.pt")
    Path("clip").rename("moved")
    line = ("sample", "--ckpt", "g.pt", "--captions", "some.jsonl", "--steps", "1", "-q", "--out", "x.npz")
    ran = run(*line)
    assert ran.code == 66
    assert "clip: no such folder (give its path with --text-encoder)" in ran.err
    assert run(*line, "--text-encoder", "moved").code == 0
    config = Path("moved/config.json")
    config.write_text(config.read_text() + "\n")
    ran = run(*line[:-1], "y.npz", "--text-encoder", "moved")
    assert ran.code == 65
    assert "the generator was trained with" in ran.err
    assert run(*line[:-1], "y.npz", "--text-encoder", "moved", "--force").code == 0


def test_images_sampled_from_captions_are_joined_by_their_groups(run: Run, captions: dict[str, str]) -> None:
    assert train(run, "--out", "g.pt").code == 0
    sample(run, "g.pt", "syn.npz", "--per-row", "8")
    again = NET.replace("digits:8:test", "syn.npz").split()
    ran = run("train-gen", *again, "--captions", "some.jsonl", "--steps", "1", "--out", "h.pt")
    assert ran.code == 0, ran.err


def test_images_without_a_caption_take_one_of_their_class(run: Run, captions: dict[str, str]) -> None:
    records = [
        {"id": f"{i}-{word}", "caption": f"{word} {i}", "class": str(i)} for i in range(10) for word in ("a", "b")
    ]
    Path("all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    ran = train(run, "--out", "g.pt")
    assert ran.code == 0, ran.err
    found, _ = sample(run, "g.pt", "syn.npz", captions="all.jsonl")
    assert found.class_names == tuple(str(i) for i in range(10))
    assert found.rows.labels.tolist() == [i // 2 for i in range(20)]
    Path("all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[2:]))
    ran = train(run, "--out", "h.pt")
    assert ran.code == 65
    assert "images have no caption: 0/" in ran.err


def test_long_captions_are_cut_and_counted(run: Run, captions: dict[str, str]) -> None:
    line = [word for word in NET.split() if word != "-q"]
    ran = run("train-gen", *line, "--captions", "all.jsonl", "--caption-length", "14", "--steps", "1", "--out", "g.pt")
    assert "corecli train-gen: 3 of 10 captions are longer than 14 bytes and were cut" in ran.err
    ran = run("sample", "--ckpt", "g.pt", "--captions", "all.jsonl", "--rows", "0,40", "--steps", "1", "--out", "o.npz")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--features $tiny/z.safetensors", 2, "--features and --captions exclude each other (give one of them)"),
        ("--condition labels", 2, "--condition labels does not work with --captions"),
        ("--feature-noise 0.1", 2, "--feature-noise does not apply to a generator conditioned on captions"),
        ("--text-encoder nowhere", 66, "nowhere: no such folder"),
        ("--text-encoder syn", 65, "config.json is missing"),
        ("--captions few.jsonl", 65, "few.jsonl: 354 of 355 images have no caption: 0/0009"),
        ("--captions twice.jsonl", 65, "twice.jsonl: duplicate key 'a'"),
        ("--captions cut.jsonl", 65, "cut.jsonl: line 2 is not JSON: "),
    ],
)
def test_what_does_not_fit_is_refused(
    run: Run, tiny: Path, captions: dict[str, str], words: str, code: int, message: str
) -> None:
    write_captions("few.jsonl", dict([next(iter(captions.items()))]))
    Path("twice.jsonl").write_text('{"id": "a", "caption": "b"}\n' * 2)
    Path("cut.jsonl").write_text('{"id": "a", "caption": "b"}\n{"id": "c", "cap')
    Path("syn").mkdir()
    ran = train(run, *words.replace("$tiny", str(tiny)).split(), "--out", "g.pt")
    assert ran.code == code, ran.err
    assert message in ran.err
    assert not Path("g.pt").exists()


def test_a_gan_takes_no_captions(run: Run, captions: dict[str, str]) -> None:
    line = "train-gen --arch icgan --data digits:8:test --batch-size 16 --captions all.jsonl --out g.pt"
    ran = run(*line.split())
    assert ran.code == 2
    assert "icgan is trained on none or features or labels, not on captions" in ran.err


def test_sampling_without_the_condition_is_refused(run: Run, tiny: Path, captions: dict[str, str]) -> None:
    assert train(run, "--out", "g.pt", steps=1).code == 0
    for line, message in (
        ("--ckpt g.pt --rows 1", "the generator is conditioned on captions (give --captions)"),
        ("--ckpt g.pt --captions nowhere", "nowhere: no such file"),
        ("--ckpt g.pt --captions some.jsonl --text-encoder x", "was trained without a frozen text encoder"),
        ("--ckpt g.pt --features $tiny/z.safetensors", "conditioned on captions, not on features"),
        ("--ckpt $tiny/unconditional.pt --captions some.jsonl", "conditioned on nothing, not on captions"),
    ):
        ran = run("sample", *line.replace("$tiny", str(tiny)).split(), "--out", "o")
        assert ran.code in (2, 66), ran.err
        assert message in ran.err


@pytest.mark.slow
def test_the_digit_that_the_caption_names_is_made(run: Run) -> None:
    """After a minute or two of training, whatever the wording: chance is a tenth."""
    wordings = ("a photo of the digit {}", "the number {} by hand", "{}", "a small handwritten {}", "a {} in white ink")
    real = open_set("digits:8:train")
    labels = torch.from_numpy(real.rows.labels)
    texts = (wordings[i % 5].format(WORDS[label]) for i, label in enumerate(labels.tolist()))
    write_captions("all.jsonl", dict(zip(real.rows.keys, texts, strict=True)))
    write_captions("wanted.jsonl", {f"{w}/{i}": text.format(w) for w in WORDS for i, text in enumerate(wordings)})
    line = "train-gen --preset tiny --data digits:8:train --captions all.jsonl --no-flip --steps 500 -q --out g.pt"
    assert run(*line.split()).code == 0
    line = "sample --ckpt g.pt --captions wanted.jsonl --per-row 2 --guidance 3 --steps 15 -q --out syn.npz"
    assert run(*line.split()).code == 0
    made = open_set("syn.npz")
    wanted = torch.tensor([WORDS.index(group.split("/")[0]) for group in made.rows.groups])
    x = real.read(np.arange(len(labels))).float().flatten(1)
    means = torch.stack([x[labels == digit].mean(0) for digit in range(10)])
    seen = torch.cdist(made.read(np.arange(len(wanted))).float().flatten(1), means).argmin(1)
    assert (seen == wanted).float().mean() > 0.6
