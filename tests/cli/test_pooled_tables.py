"""`extract --pool --blocks`: what the table holds, and that no verb takes it for other features of the encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Run, refused

from corecli.data.features import load_features
from corecli.data.imageset import open_set
from corecli.nets.encoder import Encoder, build_encoder, load_encoder, save_encoder

SETS = ("digits:8:train", "digits:8:test")


@pytest.fixture
def encoder(run: Run) -> Path:
    """A vision transformer with a projector, which pooled features know nothing of."""
    save_encoder(Path("f.safetensors"), build_encoder("vit-micro/4", image_size=8, projector_hidden=8, projector_dim=4))
    return Path("f.safetensors")


def extract(run: Run, out: str, *more: object, data: str = SETS[1]) -> Path:
    ran = run("extract", "--data", data, "--encoder", "f.safetensors", "--out", out, "-q", *more)
    assert ran.code == 0, ran.err
    return Path(out)


def pooled(path: Path, num_blocks: int) -> Encoder:
    encoder = load_encoder(path)
    encoder.set_projector(None)
    encoder.set_pooling("cls+mean", num_blocks)
    return encoder


def test_the_table_holds_pooled_features_of_the_encoder(run: Run, encoder: Path) -> None:
    table = load_features(extract(run, "z", "--pool", "cls+mean", "--blocks", 2))
    data = open_set(SETS[1])
    expected = pooled(encoder, 2).encode(data.read(np.arange(len(data.rows))))
    assert table.features.shape == (len(data.rows), 3 * 64)
    torch.testing.assert_close(table.features, expected, rtol=1e-4, atol=1e-5)
    found = {name: table.header[name] for name in ("encoder", "layer", "space")}
    layer = "backbone:cls+mean:2"
    assert found == {"encoder": load_encoder(encoder).fingerprint, "layer": layer, "space": f"vit-micro/4/{layer}"}
    assert load_features(extract(run, "z1", "--blocks", 1)).header["layer"] == "backbone:cls:1"
    again = ("extract", "--data", SETS[1], "--encoder", encoder, "--out", "z", "--pool", "cls+mean", "--blocks")
    assert "left alone" in run(*again, 2).err
    refused(run(*again, 3), "extract", 73, "exists with another config: blocks")


def test_a_probe_joins_equal_features_only(run: Run, encoder: Path) -> None:
    pool, other = ("--pool", "mean", "--blocks", 2), ("--pool", "cls", "--blocks", 2)
    train, test = extract(run, "a", *pool, data=SETS[0]), extract(run, "b", *pool)
    quick = ("--json", "-q", "--seeds", 1, "--epochs", 1)
    scores = [
        json.loads(run("probe", *line, *quick).out)["top1"]
        for line in (
            ("--train", train, "--test", test),
            ("--train", train, "--test", SETS[1], "--encoder", encoder, *pool),
            ("--train", SETS[0], "--test", SETS[1], "--encoder", encoder, *pool),
        )
    ]
    assert scores[0] == scores[1] == scores[2]
    words = (
        "features are backbone:cls:2 of",
        "those of a are backbone:mean:2 of",
        "extract both with one encoder and layer",
    )
    refused(run("probe", "--train", train, "--test", extract(run, "c", *other)), "probe", 65, *words)
    refused(run("probe", "--train", train, "--test", SETS[1], "--encoder", encoder, *other), "probe", 65, *words)


def test_a_generator_and_its_samples_know_the_pooling(run: Run, encoder: Path) -> None:
    table, other = (extract(run, out, "--pool", pool) for out, pool in (("z", "cls+mean"), ("z1", "cls")))
    gen = ("train-gen", "--preset", "tiny", "--batch-size", 32, "--steps", 2, "--data", SETS[1], "-q")
    net = ("--set", "channel_mult=1,2", "--set", "head_channels=16")
    assert run(*gen, *net, "--features", table, "--out", "g.pt").code == 0
    line = ("sample", "--ckpt", "g.pt", "--rows", "::60", "--steps", 1, "--encoder", encoder, "--out", "o", "-q")
    refused(run(*line, "--features", other), "sample", 65, "extract with the encoder and layer it was trained on")
    assert run(*line, "--features", table).code == 0
    samples, rows = open_set("o"), load_features(table)
    found = pooled(encoder, 1).encode(samples.read(np.arange(len(samples.rows)))).double()
    expected = torch.cosine_similarity(found, rows.lookup(samples.rows.groups).double())
    np.testing.assert_allclose(samples.rows.similarity, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--pool mean --encoder $tiny/f.safetensors", "no blocks of patches to pool"),
        ("--blocks 5", "the network has 4 blocks, fewer than 5"),
        ("--pool cls --layer projector", "--pool and --blocks select features of the backbone"),
    ],
)
def test_what_cannot_be_pooled_is_refused(run: Run, tiny: Path, encoder: Path, more: str, message: str) -> None:
    words = more.replace("$tiny", str(tiny)).split()
    refused(run("extract", "--data", SETS[1], "--encoder", encoder, "--out", "z", *words), "extract", 2, message)
    assert not list(Path().glob("z*"))
