"""A new metric is one file in `metrics/`: the command line, help, pages and contract tests then include it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import newcomer
import numpy as np
import pytest
import torch
from newcomer import HERE, python

from corecli.data.features import FeatureTable, save_features


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more metric, and beside it two feature tables and statistics."""
    place = newcomer.package(tmp_path_factory, "toy_metric.py", "metrics")
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 50, 4), dtype=np.float32))
    keys, labels = [f"{row:02d}" for row in range(50)], np.arange(50) % 2
    for name, rows in zip(("samples", "reference"), features, strict=True):
        table = FeatureTable(features=rows, keys=keys, groups=keys, labels=labels, header={})
        save_features(place / f"{name}.safetensors", table)
    np.savez(place / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    return place


def test_a_new_metric_is_computed(package: Path) -> None:
    line = ("fid", "--reference", "reference.safetensors", "--samples", "samples.safetensors", "--metrics", "all")
    ran = python(package, "-m", "corecli", *line, "--json")
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    scores = [name for name in record if name in ("fd_per_class", "toy_metric", "num_classes", "num_samples")]
    assert scores == ["fd_per_class", "toy_metric", "num_classes", "num_samples"]
    assert 0 < record["toy_metric"] < 2
    assert record["num_classes"] == 2


def test_a_new_metric_is_refused_where_its_needs_are_not_met(package: Path) -> None:
    line = ("fid", "--reference", "statistics.npz", "--samples", "samples.safetensors", "--metrics", "toy-metric")
    refused = python(package, "-m", "corecli", *line, "--dry-run")
    message = "corecli fid: error: toy-metric: needs features, and statistics.npz has only statistics"
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"{message} (give its images or a feature table)\n"


def test_a_new_metric_is_in_help_and_meets_the_contract(package: Path) -> None:
    """The contract includes completion and the manual page."""
    offered = python(package, "-m", "corecli", "fid", "--help")
    assert ",toy-metric" in "".join(offered.stdout.split())  # the line may break at the hyphen
    ran = python(package, "-m", "pytest", HERE / "test_metrics.py", "-k", "toy-metric", "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), ran.stdout
