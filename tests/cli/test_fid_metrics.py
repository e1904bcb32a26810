"""`corecli fid --metrics`: two feature spaces on one image set, and two sets in one feature space."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ran import Run

from corecli.data.features import FeatureTable, load_features, save_features
from corecli.metrics.diversity import diversity
from corecli.metrics.parts.frechet import distance, gaussian_of
from corecli.metrics.parts.similarity import similarity


def table(path: Path, features: torch.Tensor, *, order: np.ndarray | None = None, first: int = 0) -> Path:
    """Write a table of images with numbers as names, with its rows in this order."""
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
    printed = {text.split("\t")[0]: text.split("\t")[1:] for text in run(*line, "--bootstrap", "30").out.splitlines()}
    scores = ("cka", "cka_debiased", "opd")
    assert list(printed) == [*scores, "num_images"]
    expected = vars(similarity(features, other))
    for name in scores:
        value, low, high = map(float, printed[name])
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
    assert "b.safetensors: only 70 of 100 images are among the 120 of a.safetensors" in ran.err
    assert "'image/0' is in only one of them; extract both from the same image set" in ran.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--metrics fd,kdi", "unknown metrics 'kdi' (did you mean 'kid'?)"),
        ("--metrics fid", "fid: needs images and FID Inception weights"),
        ("--metrics sfid", "sfid: needs images and FID Inception weights"),
        ("--bootstrap 5", "--bootstrap is for cka and opd"),
        ("--metrics opd --samples $syn", "syn: not a feature table, which --metrics opd requires"),
    ],
)
def test_mistakes_are_usage_errors(run: Run, tiny: Path, more: str, message: str) -> None:
    words = more.replace("$syn", str(tiny / "syn")).split()
    ran = run("fid", "--reference", tiny / "z.safetensors", "--samples", tiny / "z.safetensors", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_diversity_of_images_and_of_tables(run: Run, tiny: Path) -> None:
    """Samples and reference have a diversity; no distance is computed unless requested."""
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
        "corecli fid: error: diversity: needs labels, and a.safetensors has images without labels\n",
    )


def test_the_copy_check_is_a_default_metric_and_not_part_of_others(run: Run, tiny: Path) -> None:
    z = tiny / "z.safetensors"
    line = ("fid", "--reference", z, "--samples", z, "--json", "-q")
    assert "copy_ratio" in json.loads(run(*line).out)
    assert "copy_ratio" not in json.loads(run(*line, "--metrics", "fd").out)


# Two sets


TABLE_METRICS = ("kid", "kid-subsets", "precision-recall", "density-coverage", "fd-infinity", "copies", "vendi")


def printed(out: str) -> dict[str, list[str]]:
    return {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}


def test_all_prints_every_score_with_intervals_numbers_and_space(run: Run, tiny: Path) -> None:
    line = ("fid", "--reference", tiny / "other_rows.safetensors", "--samples", tiny / "z.safetensors")
    ran = run(*line, "--metrics", "all")
    scores = printed(ran.out)
    name = next(iter(scores))
    assert list(scores) == [
        *(name, f"{name}_corrected", "kid", "kid_subsets", "kid_subsets_std", "precision", "recall"),
        *("density", "coverage", "fd_infinity", "nearest_real", "real_nearest_real", "copy_ratio", "copy_fraction"),
        *("memorised", "authenticity", "vendi", "vendi_centred", "reference_vendi", "reference_vendi_centred"),
        *("diversity", "reference_diversity", "fd_per_class", "num_samples", "num_reference", "space"),
    ]
    for interval in (f"{name}_corrected", "kid"):
        value, low, high = map(float, scores[interval])
        assert low < value < high
    assert [scores[n] for n in ("num_samples", "num_reference", "space")] == [
        ["355"],
        ["1442"],
        ["resnet10-tiny/projector"],
    ]
    assert ran.err.splitlines() == [
        f"corecli fid: skipped {metric}" for metric in (
            f"sfid: needs FID Inception weights and the images of {tiny}/z.safetensors",
            f"is: needs FID Inception weights and the images of {tiny}/z.safetensors",
        )
    ]  # fmt: skip
    record = json.loads(run(*line, "--metrics", "all", "--json", "-q").out)
    assert record["kid_interval"] == pytest.approx([float(number) for number in scores["kid"][1:]], rel=1e-5)
    assert record["value"] == pytest.approx(float(scores[name][0]), rel=1e-5)
    assert len(record["per_class"]) == 10
    assert sum(record["per_class"].values()) / 10 == pytest.approx(record["fd_per_class"])


def test_a_metric_alone_equals_that_of_all(run: Run, tiny: Path) -> None:
    line = ("fid", "--reference", tiny / "other_rows.safetensors", "--samples", tiny / "z.safetensors", "--json", "-q")
    every = json.loads(run(*line, "--metrics", "all").out)
    for metric in (*TABLE_METRICS, "per-class", "diversity"):
        alone = json.loads(run(*line, "--metrics", metric).out)
        assert len(alone) > len(FACTS)
        assert alone == {name: every[name] for name in alone}


def test_statistics_serve_distances_and_no_metric_of_features(run: Run, tiny: Path) -> None:
    real, judge = tiny / "real.safetensors", ("--extractor", tiny / "f.safetensors")
    assert run("fid", "--reference", real, *judge, "--save-stats", "s.npz", "-q").code == 0
    line = ("fid", "--reference", "s.npz", "--samples", real, *judge)
    for metric in ("kid", "precision-recall", "density-coverage", "copies", "per-class"):
        ran = run(*line, "--metrics", metric)
        message = f"corecli fid: error: {metric}: needs features, and s.npz has only statistics"
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"{message} (give its images or a feature table)\n"
    record = json.loads(run(*line, "--metrics", "fd,fd-infinity,vendi,diversity", "--json", "-q").out)
    assert record["value"] == pytest.approx(0, abs=1e-5)
    assert {"fd_infinity", "vendi", "diversity"} < record.keys()
    assert not {"reference_vendi", "reference_diversity"} & record.keys()
    ran = run(*line, "--metrics", "all")
    assert ran.code == 0
    assert ran.err.count("skipped ") == 8
    assert "skipped kid-subsets: needs features, and s.npz has only statistics" in ran.err


def test_classes_are_matched_by_name(run: Run, features: torch.Tensor) -> None:
    """The samples have other labels for cat and dog, and a class that the reference does not have."""
    labels = {"a": np.arange(120) % 2, "b": np.array([2, 1, 0, 1, 0, 0] * 20)}
    names = {"a": ["cat", "dog"], "b": ["dog", "cat", "bird"]}
    keys = [f"{row}" for row in range(120)]
    for name in "ab":
        save_features(
            Path(f"{name}.safetensors"),
            FeatureTable(
                features=features, keys=keys, groups=keys, labels=labels[name], header={"class_names": names[name]}
            ),
        )
    line = ("fid", "--reference", "a.safetensors", "--samples", "b.safetensors", "--metrics", "per-class", "--json")
    found = json.loads(run(*line).out)["per_class"]
    own = features.double()
    assert found == {
        "cat": pytest.approx(distance(gaussian_of(own[labels["b"] == 1]), gaussian_of(own[labels["a"] == 0]))),
        "dog": pytest.approx(distance(gaussian_of(own[labels["b"] == 0]), gaussian_of(own[labels["a"] == 1]))),
    }


def test_few_images_skip_the_metrics_that_need_more(run: Run, features: torch.Tensor) -> None:
    table(Path("a.safetensors"), features)
    table(Path("b.safetensors"), features[:4] + 1)
    line = ("fid", "--reference", "a.safetensors", "--samples", "b.safetensors")
    ran = run(*line, "--metrics", "all")
    assert ran.code == 0
    assert {"copy_ratio", "vendi"} < printed(ran.out).keys()
    for metric in ("kid", "precision-recall", "density-coverage"):
        assert f"skipped {metric}: 4 samples and 120 reference images are too few (use at least 6 of each)" in ran.err
    assert "skipped fd-infinity: 4 samples are too few" in ran.err
    alone = run(*line, "--metrics", "kid")
    assert (alone.code, alone.out, alone.err.count("\n")) == (65, "", 1)


def test_each_line_names_its_sample_set_if_there_are_several(run: Run, tiny: Path) -> None:
    z = str(tiny / "z.safetensors")
    lines = run("fid", "--reference", z, "--samples", z, "--samples", z, "--metrics", "kid", "-q").out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == 2 * [
        [z, n] for n in ("kid", "num_samples", "num_reference", "space")
    ]


# The FID Inception network


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random Inception weights that keep the scale of activations."""
    from corecli.nets.inception import FidInception

    torch.manual_seed(0)
    weights = FidInception().state_dict()
    weights = {name: torch.nn.init.kaiming_normal_(t) if t.ndim == 4 else t for name, t in weights.items()}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights, path)
    return path


@pytest.mark.slow
def test_inception_scores_and_an_adm_batch(run: Run, tiny: Path, inception: Path) -> None:
    """A reference batch of ADM has statistics of more images than it contains; these serve the other metrics."""
    pixels = np.random.default_rng(0).integers(0, 255, (14, 8, 8, 3), dtype=np.uint8)
    np.savez("images.npz", arr_0=pixels)
    np.savez("samples.npz", arr_0=pixels[:12] // 2)
    judge = ("--extractor", inception, "--cache", "cache", "--json")
    line = ("--samples", "samples.npz", *judge, "--splits", "2", "--metrics", "all")
    plain = json.loads(
        run("fid", "--reference", "images.npz", "--save-stats", "s.npz", *line, "-q").out.splitlines()[-1]
    )
    assert plain["metric"] == "fid"
    assert plain.keys() > {"sfid", "sfid_corrected_interval", "is", "is_std", "kid"}
    with np.load("s.npz") as statistics:
        moments = {name: statistics[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
        np.savez("adm.npz", arr_0=pixels[4:], **moments)
    batch = json.loads(run("fid", "--reference", "adm.npz", *line, "-q").out)
    for name in ("value", "sfid", "is"):
        assert batch[name] == pytest.approx(plain[name], rel=1e-6)
    for name in ("kid", "copy_ratio", "reference_vendi"):
        assert batch[name] != plain[name]
    line = ("--samples", "samples.npz", *judge, "--splits", "3", "-q")
    others = json.loads(run("fid", "--reference", "images.npz", *line).out)
    assert others["is"] != plain["is"]
    assert others["value"] == plain["value"]
    assert "sfid" not in others


@pytest.mark.parametrize("metric", ["fid", "sfid", "is"])
def test_metrics_of_inception_are_refused_with_an_encoder(run: Run, tiny: Path, metric: str) -> None:
    line = ("fid", "--reference", tiny / "syn", "--samples", tiny / "syn", "--extractor", tiny / "f.safetensors")
    ran = run(*line, "--metrics", metric, "-q")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert f"error: {metric}: " in ran.err
    assert "Inception weights" in ran.err
