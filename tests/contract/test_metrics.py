"""What each file in metrics/ declares and computes; a new file is tested without a change here.

`corecli/metrics/parts/metric.py` describes the declarations.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from corecli.base import registry
from corecli.cli.pages import SHELLS, completion, man_pages
from corecli.cli.verbs import options_of
from corecli.commands.fid.inputs import SOURCES, SetInputs, TableInputs
from corecli.commands.fid.scores import compute_scores
from corecli.commands.fid.sides import Side
from corecli.data.features import FeatureTable, save_features
from corecli.metrics.parts import survey as module
from corecli.metrics.parts.metric import FOLDER, INPUTS, TABLES, Metric, metrics
from corecli.metrics.parts.survey import FEWEST_ROWS, survey

MODULES = Path(inspect.getfile(registry)).parent.parent / FOLDER
BY_POSITION = {"is": 0.02, "kid-subsets": 0.02, "fd-infinity": 0.05}  # these shuffle or draw rows by their position
QUALITIES = ("good", "bad", "displaced")


@pytest.fixture(params=metrics())
def metric(request: pytest.FixtureRequest) -> Metric:
    return metrics()[request.param]


def module_of(metric: Metric) -> ModuleType:
    return registry.load(FOLDER, metric.name)


def sides(quality: str) -> tuple[Side, Side]:
    """Samples and a reference: from one distribution; "bad" samples are copies, "displaced" ones are near nothing."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def side(features: Tensor, logits: Tensor) -> Side:
        num = len(features)
        found = {"features": features, "spatial": features[:, :5].square(), "logits": logits}
        return Side(spec="set", metric="fd", groups=np.arange(num), labels=torch.arange(num) % 4, **found)

    real, other = normal(1200, 8), normal(1120, 8)
    generated = {"good": other, "bad": real[:4].repeat(280, 1) + 1e-3 * other, "displaced": other + 2}[quality]
    return side(generated, normal(1120, 20) * (8.0 if quality == "good" else 0.1)), side(real, normal(1200, 20))


def permuted(side: Side) -> Side:
    """The same images in another order."""
    order = torch.randperm(len(side.groups), generator=torch.Generator().manual_seed(1))
    assert side.labels is not None
    found = {name: getattr(side, name)[order] for name in ("features", "spatial", "logits", "labels")}
    return dataclasses.replace(side, groups=side.groups[order.numpy()], **found)


def of_sets(metric: Metric, pair: tuple[Side, Side]) -> dict[str, float | None]:
    space = "fid" if metric.space == "inception" else "fd"
    samples, reference = (dataclasses.replace(side, metric=space) for side in pair)
    inputs = SetInputs(
        samples=samples, reference=reference, metrics=(metric,), num_splits=10, seed=0, device=torch.device("cpu")
    )
    report = compute_scores(inputs.wanted, inputs, strict=(metric.name,))
    return {name: score.value for name, score in report.scores.items()}


def of_tables(metric: Metric, folder: Path, quality: str, order: np.ndarray) -> dict[str, float | None]:
    """Two spaces that are linear images of each other, or are not; the second table has its rows in this order."""
    draws = np.random.default_rng(0)
    first, unrelated, noise = (draws.standard_normal((200, 8), dtype=np.float32) for _ in range(3))
    second = (first if quality == "good" else unrelated) @ noise[:8, :6] + 0.1 * noise[:, :6]
    paths = folder / "first.safetensors", folder / "second.safetensors"
    for path, features, rows in ((paths[0], first, np.arange(200)), (paths[1], second, order)):
        keys, labels = [f"{row:03d}" for row in rows], rows.astype(np.int64) % 4
        table = FeatureTable(
            features=torch.from_numpy(features[rows]), keys=keys, groups=keys, labels=labels, header={}
        )
        save_features(path, table)
    inputs = TableInputs(paths=paths, num_resamples=2, seed=0, device=torch.device("cpu"), shown=False)
    report = compute_scores((metric,), inputs, strict=(metric.name,))
    return {name: score.value for name, score in report.scores.items()}


@cache
def of_good_sets(metric_name: str) -> dict[str, float | None]:
    return of_sets(metrics()[metric_name], sides("good"))


def measure(metric: Metric, folder: Path, quality: str = "good") -> dict[str, float | None]:
    if metric.compares_tables:
        return of_tables(metric, folder, quality, np.arange(200))
    return of_good_sets(metric.name) if quality == "good" else of_sets(metric, sides(quality))


def test_the_registry_holds_the_published_metrics() -> None:
    assert {"fd", "fid", "sfid", "is", "kid", "precision-recall", "density-coverage", "copies", "cka"} <= set(metrics())


def test_inputs_are_known_and_are_the_keywords_of_compute(metric: Metric) -> None:
    parameters = inspect.signature(module_of(metric).compute).parameters.values()
    assert [p.name for p in parameters] == [*metric.needs, *metric.uses]
    assert set(metric.needs) | set(metric.uses) <= set(INPUTS)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)


def test_declarations_agree_with_each_other(metric: Metric) -> None:
    assert metric.alias_of is None or metric.alias_of in metrics()
    assert metric.fewest >= max(FEWEST_ROWS.get(name, 1) for name in metric.needs)
    assert set(metric.scores.values()) <= {"lower", "higher", None}
    sets = set(metric.needs) & {"samples", "reference", "sample_moments", "nearest", "balls", "kernel", "logits"}
    assert not (sets and TABLES & set(metric.needs)), "two sets or two tables, not both"
    assert metric.default_from is None or not metric.compares_tables


def test_values_are_finite_numbers_under_the_declared_names(metric: Metric, tmp_path: Path) -> None:
    found = measure(metric, tmp_path)
    assert list(found) == list(metric.scores)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_worse_inputs_give_worse_values(metric: Metric, tmp_path: Path) -> None:
    """In one way of being bad: precision does not detect copies, nor a copy check samples that are near nothing."""
    good, *bads = (measure(metric, tmp_path, quality) for quality in QUALITIES)
    for name, direction in metric.scores.items():
        values = [bad[name] for bad in bads]
        if direction is not None:
            assert good[name] < max(values) if direction == "lower" else good[name] > min(values), name


def test_the_order_of_rows_does_not_matter(metric: Metric, tmp_path: Path) -> None:
    """Except for random parts of the samples, which are drawn by position."""
    found = measure(metric, tmp_path)
    if metric.compares_tables:
        other = of_tables(metric, tmp_path, "good", np.random.default_rng(1).permutation(200))
    else:
        samples, reference = sides("good")
        other = of_sets(metric, (permuted(samples), permuted(reference)))
    tolerance = BY_POSITION.get(metric.name, 1e-9)
    for name, value in found.items():
        assert other[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@cache
def pages() -> dict[str, str]:
    """The manual page of fid, and of each shell's completion the lines that offer metrics."""
    found = {"man": man_pages()["corecli-fid.1"]}
    for shell in SHELLS:
        found[shell] = "\n".join(line for line in completion(shell).splitlines() if "density-coverage" in line)
    return found


def test_pairs_of_images_are_visited_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[set[str]] = []
    monkeypatch.setattr(module, "survey", lambda *a, **k: calls.append(set(a[2])) or survey(*a, **k))
    samples, reference = sides("good")
    of_pairs = tuple(metric for metric in metrics().values() if metric.reads("nearest", "balls", "kernel"))
    given = {"samples": samples, "reference": reference, "num_splits": 1, "seed": 0, "device": torch.device("cpu")}
    inputs = SetInputs(metrics=of_pairs, **given)
    report = compute_scores(inputs.wanted, inputs, strict=[metric.name for metric in of_pairs])
    assert {"kid", "precision", "density", "copy_ratio"} <= set(report.scores)
    assert calls == [{"nearest", "balls", "kernel"}]


def test_every_input_has_a_source() -> None:
    of_tables = {name for name in INPUTS if hasattr(TableInputs, name) or name in TableInputs.__dataclass_fields__}
    assert set(INPUTS) == set(SOURCES) | of_tables - {"seed", "device"}
    assert of_tables >= TABLES


def test_help_completion_and_manual_page_offer_it(metric: Metric) -> None:
    opt = options_of("fid").Config.__dataclass_fields__["metrics"].metadata["option"]
    assert metric.name in opt.names()
    assert f"\\fB{metric.name}\\fR\n".replace("-", r"\-") in pages()["man"]
    assert all(re.search(rf"(?<![\w-]){metric.name}(?![\w-])", pages()[shell]) for shell in SHELLS)


def test_metrics_read_no_files_and_build_no_models() -> None:
    allowed = {"corecli.base.errors", "corecli.base.rng", "corecli.base"}
    for path in MODULES.rglob("*.py"):
        imported = [
            node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        ours = {name for name in imported if name.startswith("corecli") and not name.startswith("corecli.metrics")}
        assert ours <= allowed, path.name
