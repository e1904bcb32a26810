"""Test train-gen and sample with every kind of frozen text encoder, and with incomplete folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import text_encoders
import torch
from ran import Ran, Run, refused

from corecli.data.imageset import open_set
from corecli.nets.weights.text_encoders import TextEncoder, find_text_encoder

pytest.importorskip("transformers")

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ["the digit one", "seven", "a digit a digit the digit two", "unheard of"]
KINDS = tuple(text_encoders.WRITERS)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("encoders")
    for name, write in text_encoders.WRITERS.items():
        write(root / name)
    text_encoders.write_vit(root / "vit")
    pipelines.write_autoencoder(root / "first-stage")
    return root


def opened(folder: Path, **more: Any) -> TextEncoder:
    return TextEncoder(find_text_encoder(str(folder)), device=torch.device("cpu"), **more)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_is_of_the_caption_alone(kind: str, encoders: Path) -> None:
    """Whatever stands beside it in a batch, and with or without its tokens; padding repeats the whole."""
    encoder = opened(encoders / kind)
    together, wholes = encoder.embed(CAPTIONS, tokens=True), encoder.embed(CAPTIONS, tokens=False)
    assert wholes.shape == (4, 1, text_encoders.WIDTH) == (4, 1, encoder.width)
    torch.testing.assert_close(wholes, together[:, :1])
    assert len({tuple(whole) for whole in wholes[:, 0].tolist()}) == 4
    lengths = []
    for caption, found in zip(CAPTIONS, together, strict=True):
        alone = encoder.embed([caption], tokens=True)[0]
        torch.testing.assert_close(found[: len(alone)], alone, atol=2e-3, rtol=0)
        assert torch.equal(found[len(alone) :], found[:1].expand(len(found) - len(alone), -1))
        lengths.append(len(alone))
    assert len(set(lengths)) > 2


@pytest.mark.parametrize("kind", ["bert", "t5", "whole-t5", "mt5"])
def test_embeddings_are_those_of_the_model_itself(kind: str, encoders: Path) -> None:
    """Of transformers' own encoder, given one caption and no padding: its tokens, and their mean before them."""
    import transformers

    encoder = opened(encoders / kind)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoders / kind)
    name = {"bert": "BertModel", "mt5": "MT5EncoderModel"}.get(kind, "T5EncoderModel")
    model = getattr(transformers, name).from_pretrained(encoders / kind).eval()
    for caption in CAPTIONS:
        with torch.no_grad():
            tokens = model(input_ids=tokenizer([caption], return_tensors="pt").input_ids).last_hidden_state[0]
        expected = torch.cat([tokens.mean(0, keepdim=True), tokens])
        torch.testing.assert_close(encoder.embed([caption], tokens=True)[0].float(), expected, atol=4e-3, rtol=1e-3)


def test_how_long_a_caption_may_be(encoders: Path) -> None:
    """The limit is that of the tokenizer or the model, else the given one."""
    assert opened(encoders / "bert").length == text_encoders.TOKENS == opened(encoders / "bert", length=99).length
    assert opened(encoders / "bert", length=5).length == 5
    assert (opened(encoders / "t5").length, opened(encoders / "t5", length=99).length) == (128, 99)
    long = " ".join(["digit"] * 20)
    assert opened(encoders / "bert").embed([long], tokens=True).shape == (1, 1 + text_encoders.TOKENS, 16)
    assert opened(encoders / "bert").num_cut([long, "one"]) == 1


def train(run: Run, net: str, encoder: Path, *more: object) -> Ran:
    rows = open_set("digits:8:test").rows
    pairs = zip(rows.keys, rows.labels.tolist(), strict=True)
    lines = (json.dumps({"id": key, "caption": f"the digit {WORDS[label]}"}) + "\n" for key, label in pairs)
    Path("all.jsonl").write_text("".join(lines))
    line = f"train-gen {net} --data digits:8:test --batch-size 8 --captions all.jsonl --steps 4"
    return run(*line.split(), "--lr", "0.02", "-q", "--text-encoder", encoder, "--out", "g.pt", *more)


ADM = "--preset tiny --set channels=16 --set head_channels=16"
LDM = (
    "--arch ldm --set channels=8 --set channel_mult=1,2 --set head_channels=8 --set num_res_blocks=1 "
    "--set attention_resolutions=2 --set context_dim=8"
)


@pytest.mark.parametrize(
    ("kind", "net"), [("clip", ADM), ("bert", ADM), ("t5", ADM), ("mt5", ADM), ("bert", LDM), ("t5", LDM)]
)
def test_images_are_made_of_what_each_kind_reads(kind: str, net: str, run: Run, encoders: Path) -> None:
    """By one vector, or by attention to tokens: an image is of its own caption, whatever the others of its batch."""
    stage = ("--first-stage", encoders / "first-stage") if net is LDM else ()
    ran = train(run, net, encoders / kind, *stage)
    assert ran.code == 0, ran.err

    def sampled(captions: str, *more: str) -> torch.Tensor:
        Path("wanted.txt").write_text(captions)
        line = "sample --ckpt g.pt --captions wanted.txt --guidance 4 --steps 2 -q --force --out o.npz"
        ran = run(*line.split(), *more)
        assert ran.code == 0, ran.err
        return open_set("o.npz").read(np.arange(2)).int()

    images = sampled("digit one\na seven\n")
    assert (images - sampled("digit one\na seven\n", "--batch-size", "1")).abs().max() <= 1
    another = sampled("digit one\nthe digit the digit the digit nine\n")
    assert (another[0] - images[0]).abs().max() <= 1
    assert (another[1] - images[1]).abs().max() > 1


# Folders that are not whole


def copied(encoders: Path, kind: str) -> Path:
    shutil.copytree(encoders / kind, "encoder")
    return Path("encoder")


@pytest.mark.parametrize("kind", ["clip", "bert", "t5"])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "not a text encoder of transformers: config.json is missing"),
        ("model.safetensors", "the weights of the text encoder are missing"),
        ("tokenizer.json", "the tokenizer of the text encoder is missing"),
    ],
)
def test_a_folder_without_one_of_its_files(run: Run, encoders: Path, kind: str, file: str, message: str) -> None:
    folder = copied(encoders, kind)
    (folder / file).unlink()
    for more in ((), ("--dry-run",)):
        ran = train(run, ADM, folder, *more)
        refused(ran, "train-gen", 65, f"encoder: {message} (copy or download the whole folder)")
    assert not Path("g.pt").exists()


def cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 300)


def drop_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    kept = list(load_file(folder / "model.safetensors").items())[1:]
    save_file(dict(kept), folder / "model.safetensors", metadata={"format": "pt"})


def drop_a_part(folder: Path) -> None:
    """As when one of several files of weights was not copied."""
    part = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / part)
    index = {"metadata": {}, "weight_map": {"a": part, "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def forget_padding(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, "the text encoder cannot be loaded: "),
        (drop_weights, "the text encoder cannot be loaded: 1 weights are missing: "),
        (drop_a_part, "the text encoder cannot be loaded: "),
        (forget_padding, "the tokenizer has no padding token (use a text encoder such as CLIP or T5)"),
    ],
)
def test_a_folder_that_is_damaged(run: Run, encoders: Path, damage: Any, message: str) -> None:
    damage(copied(encoders, "bert"))
    refused(train(run, ADM, Path("encoder")), "train-gen", 65, f"encoder: {message}", "(")
    assert not Path("g.pt").exists()


def test_what_does_not_read_text(run: Run, encoders: Path) -> None:
    ran = train(run, ADM, encoders / "vit")
    refused(ran, "train-gen", 65, "ViTModel needs other inputs besides text (use a text encoder such as CLIP or T5)")
