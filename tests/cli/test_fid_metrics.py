"""`corecli fid --metrics`: two feature spaces on one image set, and the diversity of a class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Run

from corecli.data.features import FeatureTable, load_features, save_features
from corecli.metrics.diversity import diversity
from corecli.metrics.similarity import similarity


def table(path: Path, features: torch.Tensor, *, order: np.ndarray | None = None, first: int = 0) -> Path:
    """A table of images named by their number, its rows in the order given."""
    keys = [f"image/{first + row}" for row in range(len(features))]
    order = np.arange(len(keys)) if order is None else order
    rows, labels = [keys[row] for row in order], (order % 3).astype(np.int64)
    picked = features[torch.from_numpy(order)]
    save_features(path, FeatureTable(features=picked, keys=rows, groups=rows, labels=labels, header={}))
    return path


FACTS = ("samples", "reference", "num_samples", "num_reference", "space", "fingerprint", "dim")


@pytest.fixture
def features() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((120, 6))).float()


def test_tables_are_joined_by_key_whatever_their_order(run: Run, features: torch.Tensor) -> None:
    rotated = features @ torch.linalg.qr(features[:6])[0] * 3 + 1
    shuffled = np.random.default_rng(1).permutation(120)
    table(Path("a.safetensors"), features)
    table(Path("b.safetensors"), rotated, order=shuffled)
    line = ["fid", "--reference", "a.safetensors", "--samples", "b.safetensors", "--metrics", "cka,opd", "--json", "-q"]
    record = json.loads(run(*line).out)
    assert (record["cka"], record["opd"], record["cka_debiased"]) == pytest.approx((0, 0, 0), abs=1e-5)
    assert (record["num_images"], record["dims"], record["num_resamples"]) == (120, [6, 6], 100)


def test_scores_and_intervals_are_those_of_the_metric(run: Run, features: torch.Tensor) -> None:
    other = features[:, :4] ** 2 + features[:, 2:]
    table(Path("a.safetensors"), features)
    table(Path("b.safetensors"), other)
    line = ["fid", "--reference", "a.safetensors", "--samples", "b.safetensors", "--metrics", "cka", "--metrics", "opd"]
    told = {text.split("\t")[0]: text.split("\t")[1:] for text in run(*line, "--bootstrap", "30").out.splitlines()}
    scores = ("cka", "cka_debiased", "opd")
    assert list(told) == [*scores, "num_images"]
    expected = vars(similarity(features, other))
    for name in scores:
        value, low, high = map(float, told[name])
        assert value == pytest.approx(expected[name], rel=1e-5)
        assert low < high
    assert run(*line, "--bootstrap", "30").out == run(*line, "--bootstrap", "30").out
    none = run(*line, "--bootstrap", "0", "-q")
    assert [text.split("\t")[0] for text in none.out.splitlines()] == [*scores, "num_images"]


def test_tables_of_other_images_are_refused(run: Run, features: torch.Tensor) -> None:
    table(Path("a.safetensors"), features)
    table(Path("b.safetensors"), features[:100], first=50)
    ran = run(*["fid", "--reference", "a.safetensors", "--samples", "b.safetensors", "--metrics", "cka"])
    assert (ran.code, ran.out) == (65, "")
    assert "b.safetensors: 100 images, of which 70 are among the 120 of a.safetensors" in ran.err
    assert "'image/0' is in one alone; extract both from the same image set" in ran.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--metrics fd,kdi", "unknown metrics 'kdi' (did you mean 'kid'?)"),
        ("--metrics fid", "fid needs images and FID Inception weights"),
        ("--metrics sfid", "sfid needs images and FID Inception weights"),
        ("--bootstrap 5", "--bootstrap is for cka and opd"),
        ("--metrics opd --samples $syn", "opd compare two feature tables, and this is none"),
    ],
)
def test_mistakes_are_usage_errors(run: Run, tiny: Path, more: str, message: str) -> None:
    words = more.replace("$syn", str(tiny / "syn")).split()
    ran = run("fid", "--reference", tiny / "z.safetensors", "--samples", tiny / "z.safetensors", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_diversity_of_images_and_of_tables(run: Run, tiny: Path) -> None:
    """Of the samples and of the reference, and alone it computes no distance."""
    z, real = tiny / "z.safetensors", tiny / "real.safetensors"
    line = ("fid", "--json", "-q", "--metrics", "diversity", "--reference")
    of_tables = json.loads(run(*line, z, "--samples", z).out)
    assert of_tables.keys() == {"diversity", "reference_diversity", *FACTS}
    found = load_features(z)
    expected = diversity(found.features, torch.from_numpy(found.labels))
    assert of_tables["diversity"] == of_tables["reference_diversity"] == pytest.approx(expected, rel=1e-9)
    judge = ("--extractor", tiny / "f.safetensors", "--layer", "projector")
    of_images = json.loads(run(*line, real, "--samples", real, *judge).out)
    assert of_images["diversity"] == pytest.approx(expected, rel=1e-4)
    both = json.loads(run(*line, real, "--samples", real, *judge, "--metrics", "fd").out)
    assert both.keys() > {"metric", "value", "diversity", "reference_diversity"}


def test_diversity_needs_labels(run: Run, features: torch.Tensor) -> None:
    keys = [f"{row}" for row in range(120)]
    labels = np.full(120, -1)
    save_features(
        Path("a.safetensors"), FeatureTable(features=features, keys=keys, groups=keys, labels=labels, header={})
    )
    ran = run(*["fid", "--reference", "a.safetensors", "--samples", "a.safetensors", "--metrics", "diversity"])
    assert (ran.code, ran.err) == (
        2,
        "corecli fid: error: diversity needs labels, and a.safetensors has images without\n",
    )


def test_a_copy_check_only_where_asked(run: Run, tiny: Path) -> None:
    z = tiny / "z.safetensors"
    line = ("fid", "--reference", z, "--samples", z, "--json", "-q")
    assert "copy_ratio" in json.loads(run(*line).out)
    assert "copy_ratio" not in json.loads(run(*line, "--metrics", "fd").out)
