"""`probe` as people publish with it: many sets in one call, every way to train the classifier, every score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ran import Run

from corecli.commands.probe.sets import named, tasks
from corecli.data.imageset import open_set


@pytest.fixture(autouse=True)
def short_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of as many steps as --epochs says, not of 500 at least."""
    from functools import partial

    from corecli.metrics.parts import linear_probe

    monkeypatch.setattr(linear_probe, "ProbeOptions", partial(linear_probe.ProbeOptions, min_steps=5))


@pytest.fixture(scope="session")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the test digits of three classes only: 1, 7 and 9."""
    folder = tmp_path_factory.mktemp("some")
    data = open_set("digits:8:test")
    images = data.read(np.arange(len(data.rows))).permute(0, 2, 3, 1).numpy()
    for key, image in zip(data.rows.keys, images, strict=True):
        if key[0] in "179":
            (folder / key).parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"{key}.png")
    return folder


def records(run: Run, *words: object) -> list[dict[str, Any]]:
    ran = run("probe", *words, "--json", "-q")
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def table(out: str) -> dict[tuple[str, str], float]:
    cells = [line.split("\t") for line in out.splitlines()]
    return {(row[0], row[1]): float(row[2]) for row in cells}


# Which sets belong together


def test_a_name_is_what_stands_before_the_first_equals_sign_unless_the_whole_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").mkdir()
    found = {text: (named(text).name, named(text).spec) for text in ("lr=0.1", "in-v2.b=a/lr=0.1", "a/b=c", "=x", "x=")}
    assert found == {
        "lr=0.1": (None, "lr=0.1"),
        "in-v2.b=a/lr=0.1": ("in-v2.b", "a/lr=0.1"),
        "a/b=c": (None, "a/b=c"),
        "=x": (None, "=x"),
        "x=": (None, "x="),
    }


def test_a_test_set_goes_with_the_training_set_of_its_name_or_else_with_the_first() -> None:
    found = tasks(["A", "cars=B"], ["cars=C", "D"], ["E", "cars=F", "v2=G"])
    assert [[one.spec for one in task.sets] for task in found] == [["A", "D", "E", "G"], ["B", "C", "F"]]


def test_transfer_and_shift_in_one_table(run: Run, tiny: Path, some: Path) -> None:
    z, z1 = tiny / "z.safetensors", tiny / "other_rows.safetensors"
    line = ("probe", "--train", z, "--epochs", 1, "--seeds", 1)
    alone = dict(line.split("\t")[:2] for line in run(*line, "--test", z1).out.splitlines())
    back = run("probe", "--train", z1, "--test", z, "--epochs", 1, "--seeds", 1).out.splitlines()
    more = ("--train", f"back={z1}", "--test", f"back={z}", "--test", f"s={z1}", "--test", f"t={z}", "--test", z1)
    ran = run(*line, *more)
    found = table(ran.out)
    assert list(dict.fromkeys(name for name, _ in found)) == ["back", "s", "t", str(z1), "mean(shift)"]
    for name in (str(z1), "s"):
        assert {score: found[name, score] for score in alone} == {k: float(v) for k, v in alone.items()}
    assert found["back", "top1"] == float(back[0].split("\t")[1])
    assert found["mean(shift)", "top1"] == pytest.approx((found["s", "top1"] + found["t", "top1"]) / 2, abs=1e-5)
    of = records(run, *line[1:], *more)
    assert [one.get("name") for one in of] == ["back", "s", "t", None, None]
    assert of[-1]["mean_over"] == ["s", "t"]
    assert of[0]["train"] == str(z1)


PAIRS = [
    ("--train A --train B --test C", "--train has two sets without a name"),
    ("--train A --test C --test C", "--test has two sets called C"),
    ("--train A --train x=B --test C", "--train x has no --test (give --test x=SET)"),
    ("--train x=A --train y=B --test y=C", "--train x has no --test (give --test x=SET)"),
    ("--train x=A --test C --val y=B", "--val y needs a --train of its own"),
    ("--train x=A --test C --val x=B --val D", "--val x needs a --train of its own"),
]


@pytest.mark.parametrize(("line", "message"), PAIRS)
def test_sets_that_belong_to_none_are_refused(run: Run, line: str, message: str) -> None:
    ran = run("probe", *line.split())
    assert ran.code == 2
    assert message in ran.err


# Classes


def test_a_set_with_some_of_the_classes_is_scored_over_their_logits(run: Run, tiny: Path, some: Path) -> None:
    line = ("--encoder", tiny / "f.safetensors", "--train", "digits:8:train", "--test", some, "--epochs", 2)
    (own,), (every,) = records(run, *line), records(run, *line, "--no-subset-logits")
    assert (own["num_classes"], every["num_classes"]) == (3, 10)
    assert own["top1"] > every["top1"]
    assert own["knn_top1"] > every["knn_top1"]
    assert own["top5"] is None
    assert own["per_class"].keys() == {"1", "7", "9"}
    assert f"{some}: scored over the logits of its 3 of 10 classes" in run("probe", *line).err


# How much there is to learn from


def test_shots_and_fractions_draw_alike_from_every_class_and_anew_for_each_seed(run: Run, tiny: Path) -> None:
    line = ("--encoder", tiny / "f.safetensors", "--train", "digits:8:train", "--test", "digits:8:test")
    (few,), (more,) = records(run, *line, "--shots", 5), records(run, *line, "--fraction", 0.1)
    assert (few["num_train"], len(few["top1_by_seed"])) == (50, 3)
    assert more["num_train"] == sum(round(0.1 * n) for n in np.bincount(open_set("digits:8:train").rows.labels))
    assert len(set(few["top1_by_seed"])) > 1
    (whole,) = records(run, *line)
    assert few["top1"] < more["top1"] < whole["top1"]
    assert few["knn_top1"] < whole["knn_top1"]
    ran = run("probe", *line, "--shots", 1000)
    assert ran.code == 65
    assert "fewer than --shots 1000" in ran.err


# How the classifier is trained


def test_logistic_regression_is_scikit_learns_at_the_chosen_c(run: Run, tiny: Path) -> None:
    """Also with a validation set, on which C is chosen and which the last fit includes."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    from corecli.data.features import load_features

    train, held = (load_features(tiny / f"{name}.safetensors") for name in ("z", "other_rows"))
    test = ("--test", tiny / "other_rows.safetensors", "--mode", "logistic")
    found = {}
    for name, more in (("train", ()), ("train and val", ("--val", tiny / "other_rows.safetensors"))):
        (record,) = records(run, "--train", tiny / "z.safetensors", *test, *more)
        parts = [train, held] if more else [train]
        x = torch.cat([part.features for part in parts]).double().numpy()
        y = np.concatenate([part.labels for part in parts])
        mean, deviation = x.mean(0), x.std(0)
        peer = linear_model.LogisticRegression(C=record["settings"][0], max_iter=10_000, tol=1e-8)
        peer.fit((x - mean) / deviation, y)
        expected = peer.score((held.features.double().numpy() - mean) / deviation, held.labels)
        assert record["top1"] == pytest.approx(expected, abs=0.002)
        found[name] = record["top1"]
    assert found["train and val"] > found["train"]


def test_few_shots_are_not_joined_by_the_images_they_are_chosen_on(run: Run, tiny: Path) -> None:
    line = ("--train", tiny / "z.safetensors", "--test", tiny / "other_rows.safetensors", "--shots", 2)
    held = ("--val", tiny / "other_rows.safetensors")
    (few,), (all_,) = records(run, *line, *held), records(run, *line[:4], *held)
    assert few["num_train"] == 20
    assert few["top1"] < all_["top1"] - 0.1


def test_a_preset_trains_on_views(run: Run, tiny: Path) -> None:
    line = ("--encoder", tiny / "f.safetensors", "--train", "digits:8:test", "--test", "digits:8:test")
    (found,) = records(run, *line, "--preset", "mocov3", "--train-batch", 32, "--epochs", 10, "--lr", 3)
    assert (found["mode"], found["settings"], "knn_top1" in found) == ("sgd", [], False)
    assert found["top1"] > 0.4


# Scores


def test_the_confusion_matrix_has_a_row_for_each_true_class(run: Run, tiny: Path, some: Path) -> None:
    line = ("--encoder", tiny / "f.safetensors", "--train", "digits:8:train", "--seeds", 1)
    (whole,) = records(run, *line, "--test", "digits:8:test", "--confusion", "c.csv")
    header, *rows = [line.split(",") for line in Path("c.csv").read_text().splitlines()]
    assert header[1:] == [row[0] for row in rows] == list("0123456789")
    counts = np.array([row[1:] for row in rows], dtype=float)
    assert counts.sum(1).tolist() == np.bincount(open_set("digits:8:test").rows.labels).tolist()
    assert counts.trace() / counts.sum() == pytest.approx(whole["top1"])
    assert counts.diagonal() / counts.sum(1) == pytest.approx(list(whole["per_class"].values()))
    records(run, *line, "--test", some, "--confusion", "c.csv")
    counts = np.array([row.split(",")[1:] for row in Path("c.csv").read_text().splitlines()[1:]], dtype=float)
    assert counts.shape == (10, 10)
    assert set(np.flatnonzero(counts.sum(0))) <= {1, 7, 9}


def test_predictions_of_each_image_give_the_scores(run: Run, tiny: Path) -> None:
    line = ("--encoder", tiny / "f.safetensors", "--train", "digits:8:train", "--test", "digits:8:test")
    (found,) = records(run, *line, "--shots", 2, "--seeds", 2, "--epochs", 1, "--k", "1,5", "--predictions", "p.csv")
    header, *rows = [line.split(",") for line in Path("p.csv").read_text().splitlines()]
    assert header == ["key", "class", "probe0", "probe1", "knn1_0", "knn1_1", "knn5_0", "knn5_1"]
    key, label, *predicted = np.array(rows).T
    assert key.tolist() == open_set("digits:8:test").rows.keys
    assert [name[0] for name in key.tolist()] == label.tolist()
    right = np.array(predicted) == label
    assert right[:2].mean(1) == pytest.approx(found["top1_by_seed"])
    assert [right[2:4].mean(), right[4:].mean()] == pytest.approx([found["knn1_top1"], found["knn5_top1"]])


@pytest.mark.slow
def test_accuracy_under_corruptions_is_that_of_corrupted_copies(run: Run, tiny: Path) -> None:
    from corecli.base.rng import derive
    from corecli.data.imageset import write_set
    from corecli.views.corrupt import corrupt

    line = ("--encoder", tiny / "f.safetensors", "--train", "digits:8:train", "--epochs", 5, "--seeds", 2)
    names = ("--corruptions", "contrast,gaussian_noise", "--corruptions", "fog")
    (found,) = records(run, *line, "--test", "digits:8:test", *names)
    assert list(found["corruptions"]) == ["contrast", "gaussian_noise", "fog"]
    assert all(len(each) == 5 for each in found["corruptions"].values())
    values = [value for each in found["corruptions"].values() for value in each]
    assert found["corruption_mean"] == pytest.approx(np.mean(values))
    data = open_set("digits:8:test")
    seeds = [derive(0, "corrupt", "gaussian_noise", 3, key) for key in data.rows.keys]
    copies = corrupt(data.read(np.arange(len(data.rows))), "gaussian_noise", 3, seeds=seeds)
    write_set(Path("copies.safetensors"), data.rows, [copies], class_names=data.class_names, header={})
    (of_copies,) = records(run, *line, "--test", "copies.safetensors")
    assert found["corruptions"]["gaussian_noise"][2] == of_copies["top1"]
    lines = run("probe", *line, "--test", "digits:8:test", *names).out.splitlines()
    assert f"corruption fog\t{np.mean(found['corruptions']['fog']):.6g}" in lines
    assert f"corruption_mean\t{found['corruption_mean']:.6g}" in lines


def test_images_of_several_classes_are_scored_by_mean_average_precision(run: Run, tiny: Path) -> None:
    """Even, small and round digits; every seventh image is difficult to see as a round one."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    from corecli.data.features import load_features
    from corecli.metrics.parts.average_precision import average_precision_11

    classes = {"even": {0, 2, 4, 6, 8}, "round": {0, 6, 8, 9}, "small": {0, 1, 2}}
    tables = [load_features(tiny / f"{name}.safetensors") for name in ("other_rows", "z")]
    lines = []
    for table in tables:
        for row, (key, label) in enumerate(zip(table.keys, table.labels.tolist(), strict=True)):
            own = [name for name in classes if label in classes[name]]
            hard = ["round"] if row % 7 == 0 and "round" in own else []
            lines.append(f"{key}\t{';'.join(sorted({*own} - {*hard}))}\t{';'.join(hard)}")
    Path("labels.tsv").write_text("\n".join(lines) + "\n")
    files = ("--train", tiny / "other_rows.safetensors", "--test", tiny / "z.safetensors", "--mode", "logistic")
    (found,) = records(run, *files, "--labels", "labels.tsv")
    (cost,) = found["settings"]
    x, z = (table.features.double().numpy() for table in tables)
    mean, deviation = x.mean(0), x.std(0)
    for name, members in classes.items():
        truth = [np.isin(table.labels, list(members)).astype(int) for table in tables]
        if name == "round":
            for target in truth:
                target[::7] = np.where(target[::7] == 1, -1, target[::7])
        known = truth[0] >= 0
        peer = linear_model.LogisticRegression(C=cost, max_iter=10_000, tol=1e-8)
        peer.fit(((x - mean) / deviation)[known], truth[0][known])
        scores = peer.decision_function((z - mean) / deviation)
        expected = average_precision_11(*(map(torch.from_numpy, (scores, truth[1]))))
        assert found["per_class"][name] == pytest.approx(expected, abs=0.005)
    assert found["map"] == pytest.approx(np.mean(list(found["per_class"].values())))
    out = run("probe", *files, "--labels", "labels.tsv", "--per-class").out.splitlines()
    assert [line.split("\t")[0] for line in out] == ["map", "class even", "class round", "class small"]


LISTS = [
    ("a\tx;y\nb\n", "line 2 is not KEY<TAB>CLASS"),
    ("a\tx;y\na\tx\n", "line 2 repeats the key 'a'"),
    ("a\tx\n", "names 1 class (a probe needs at least two)"),
    ("a\tx;y\n", "has none of its keys, such as '0/0004'"),
]


@pytest.mark.parametrize(("text", "message"), LISTS)
def test_bad_label_files_are_refused(run: Run, tiny: Path, text: str, message: str) -> None:
    Path("l.tsv").write_text(text)
    z = tiny / "z.safetensors"
    ran = run("probe", "--train", z, "--test", z, "--mode", "logistic", "--labels", "l.tsv")
    assert ran.code == 65
    assert message in ran.err


REFUSED = [
    ("--labels l.tsv", "--labels does not apply to --mode sweep"),
    ("--labels l.tsv --mode logistic --k 3", "--k does not apply to images with several classes"),
    ("--shots 3 --fraction 0.1", "--shots and --fraction exclude each other"),
    ("--corruptions fig", "unknown corruption 'fig' (did you mean 'fog'?)"),
    ("--corruptions fog", "--corruptions needs images"),
    ("--pool mean", "--pool needs an --encoder with --layer backbone"),
    ("--holdout 0.2 --val $z", "--holdout and --val exclude each other"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_scores_that_cannot_be_had_are_refused(run: Run, tiny: Path, line: str, message: str) -> None:
    z = tiny / "z.safetensors"
    ran = run("probe", "--train", z, "--test", z, *line.replace("$z", str(z)).split())
    assert ran.code == 2
    assert message in ran.err


def test_a_pooled_transformer_is_fine_tuned_and_scored(run: Run, tiny: Path) -> None:
    line = ("--encoder", tiny / "vit.safetensors", "--train", "digits:8:test", "--test", "digits:8:test")
    more = ("--mode", "finetune", "--epochs", 1, "--warmup-epochs", 0, "--train-batch", 64, "--lr", 0.02)
    found = [records(run, *line, *more, *pool)[0] for pool in ((), ("--pool", "cls+mean", "--blocks", 2))]
    assert [(one["pool"], one["blocks"]) for one in found] == [(None, None), ("cls+mean", 2)]
    assert found[0]["top1"] != found[1]["top1"]
    ran = run("probe", *line, "--pool", "mean", "--encoder", tiny / "f.safetensors")
    assert ran.code == 2
    assert "no blocks of patches" in ran.err


def test_all_corruptions_are_the_fifteen() -> None:
    from corecli.commands.probe.checks import corruptions
    from corecli.views.corrupt import CORRUPTIONS

    assert corruptions(("fog", "all")) == CORRUPTIONS
    assert corruptions(("fog,snow", "fog")) == ("fog", "snow")
