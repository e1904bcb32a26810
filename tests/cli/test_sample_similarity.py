"""Samples compared with what they were made from, and those left out that are too far from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Run, refused

from corecli.data.features import load_features
from corecli.data.imageset import ImageSet, open_set
from corecli.nets.encoder import load_encoder

FORMATS = {"o": "directory", "o.tar": "tar", "o.npz": "npz", "o.safetensors": "packed"}


def line(tiny: Path, *more: object) -> tuple[object, ...]:
    return (
        "sample",
        "--ckpt",
        tiny / "g.pt",
        "--features",
        tiny / "z.safetensors",
        "--rows",
        "::3",
        "--steps",
        2,
        *more,
    )


def all_images(data: ImageSet) -> torch.Tensor:
    return data.read(np.arange(len(data.rows)))


def cosines(tiny: Path, data: ImageSet) -> np.ndarray:
    """Of every image to the table's row of its group, in float64."""
    encoder, table = load_encoder(tiny / "f.safetensors"), load_features(tiny / "z.safetensors")
    found = encoder.encode(all_images(data), table.header["layer"]).double()
    wanted = table.lookup(data.rows.groups).double()
    return ((found * wanted).sum(1) / found.norm(dim=1) / wanted.norm(dim=1)).numpy()


@pytest.mark.parametrize("out", FORMATS)
def test_the_column_is_the_cosine_and_the_filter_drops_what_is_below(run: Run, tiny: Path, out: str) -> None:
    assert run(*line(tiny, "--encoder", tiny / "f.safetensors", "--out", out, "-q")).code == 0
    whole = open_set(out)
    assert whole.rows.similarity is not None and whole.rows.similarity.dtype == np.float32
    np.testing.assert_allclose(whole.rows.similarity, cosines(tiny, whole), atol=1e-5)
    lowest = float(np.median(whole.rows.similarity))
    words = line(tiny, "--encoder", tiny / "f.safetensors", "--min-similarity", lowest, "--out", f"kept{out}")
    ran = run(*words, "--json")
    kept, above = open_set(f"kept{out}"), whole.rows.similarity >= np.float32(lowest)
    assert 0 < len(kept.rows) == above.sum() < len(whole.rows)
    assert kept.rows.keys == [key for key, good in zip(whole.rows.keys, above, strict=True) if good]
    assert np.array_equal(kept.rows.similarity, whole.rows.similarity[above])  # type: ignore[arg-type]
    assert torch.equal(all_images(kept), all_images(whole)[torch.from_numpy(above)])
    record = json.loads(ran.out)
    assert (record["num"], record["dropped"]) == (len(kept.rows), int((~above).sum()))
    assert f"{record['dropped']} images are below a similarity of {lowest:g} and were left out" in ran.err
    again = run(*words, "--json")
    assert (json.loads(again.out)["num"], "left alone" in again.err) == (len(kept.rows), True)


def test_the_images_are_those_made_without_an_encoder(run: Run, tiny: Path) -> None:
    assert run(*line(tiny, "--out", "plain", "-q")).code == 0
    assert run(*line(tiny, "--encoder", tiny / "f.safetensors", "--out", "o", "-q")).code == 0
    assert open_set("plain").rows.similarity is None
    assert torch.equal(all_images(open_set("plain")), all_images(open_set("o")))


def test_shards_keep_their_columns_and_may_be_empty(run: Run, tiny: Path) -> None:
    encoder = ("--encoder", tiny / "f.safetensors")
    assert run(*line(tiny, *encoder, "--out", "o", "-q")).code == 0
    whole = open_set("o").rows
    assert whole.similarity is not None
    best = whole.keys[int(whole.similarity.argmax())]
    lowest = float(np.sort(whole.similarity)[-2:].mean())  # one image passes
    words = line(tiny, *encoder, "--min-similarity", lowest, "--shards", 4, "--out", "s", "--json")
    record = json.loads(run(*words).out)
    assert (record["num"], record["dropped"]) == (1, len(whole) - 1)
    kept = open_set("s").rows
    assert kept.keys == [best] and kept.similarity == whole.similarity.max()
    manifest = json.loads(Path("s/manifest.json").read_text())
    assert sorted(shard["num"] for shard in manifest["shards"]) == [0, 0, 0, 1]
    assert json.loads(run(*words).out)["num"] == 1
    nothing = run(*words, "--min-similarity", 1, "--out", "t")
    assert (nothing.code, nothing.out) == (65, "")
    assert "no image has a similarity of 1" in nothing.err


def test_what_is_made_is_kept_for_a_lower_bar(run: Run, tiny: Path) -> None:
    words = line(tiny, "--encoder", tiny / "f.safetensors", "--out", "o", "-q")
    refused(run(*words, "--min-similarity", 1), "sample", 65, "no image has a similarity of 1 (lower --min-similarity;")
    assert json.loads(run(*words, "--min-similarity", -1, "--json").out)["images_per_sec"] == 0
    assert len(open_set("o").rows) == 119 and not Path("o.d").exists()


def test_mixtures_pass_over_the_column(run: Run, tiny: Path) -> None:
    words = line(tiny, "--encoder", tiny / "f.safetensors", "--out", "o.safetensors", "-q")
    assert run(*words).code == 0
    mixed = ("inflate", "--real", tiny / "real.safetensors", "--synthetic", "o.safetensors", "--out", "m.json", "-q")
    assert run(*mixed).code == 0
    assert open_set("m.json").rows.similarity is None and len(open_set("m.json").rows) == 355 + 119
    assert run("inflate", "--synthetic", "o.safetensors", "--materialize", "copy", "-q").code == 0
    copied, made = open_set("copy").rows, open_set("o.safetensors").rows
    assert dict(zip(copied.keys, copied.similarity, strict=True)) == dict(zip(made.keys, made.similarity, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--encoder $t/f1.safetensors", 65, "f1.safetensors: not the encoder of"),
        ("--encoder $t/nowhere.safetensors", 66, "nowhere.safetensors: no such file"),
        ("--encoder $t/z.safetensors", 65, "is of kind 'features', not 'encoder'"),
        ("--min-similarity 0.5", 2, "--min-similarity needs --encoder (name the encoder of the table)"),
        ("--encoder $t/f.safetensors --min-similarity 2", 2, "2.0 is above 1"),
    ],
)
def test_refusals(run: Run, tiny: Path, words: str, code: int, said: str) -> None:
    refused(run(*line(tiny, "--out", "o", "-q", *words.replace("$t", str(tiny)).split())), "sample", code, said)
    assert not Path("o").exists()


def test_another_encoder_is_taken_by_force_and_nothing_is_compared_with_nothing(run: Run, tiny: Path) -> None:
    assert run(*line(tiny, "--encoder", tiny / "f1.safetensors", "--force", "--out", "o", "-q")).code == 0
    alone = ("sample", "--ckpt", tiny / "unconditional.pt", "--encoder", tiny / "f.safetensors", "--out", "u")
    refused(
        run(*alone),
        "sample",
        2,
        "--encoder compares images with the rows or images they are made from (give --features or --images)",
    )


def test_of_a_pipeline_it_is_the_similarity_to_the_source_image(run: Run, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import pipelines

    pipelines.save_image_variation(tmp_path / "p")
    words = (
        "sample",
        "--ckpt",
        f"diffusers:{tmp_path / 'p'}",
        "--images",
        tiny / "real.safetensors",
        "--rows",
        "3,9,20",
    )
    encoder = ("--encoder", tiny / "f.safetensors", "--image-size", 8, "--steps", 1, "-q")
    assert run(*words, *encoder, "--out", "o.npz").code == 0
    found, real = open_set("o.npz"), open_set(tiny / "real.safetensors")
    net = load_encoder(tiny / "f.safetensors")
    source = real.read(np.array([real.rows.keys.index(group) for group in found.rows.groups]))
    wanted = torch.cosine_similarity(net.encode(all_images(found), "projector"), net.encode(source, "projector"))
    np.testing.assert_allclose(found.rows.similarity, wanted.numpy(), atol=1e-5)  # type: ignore[arg-type]
