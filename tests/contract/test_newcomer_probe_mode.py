"""One new file in `corecli/commands/probe/modes/` adds a mode: command line, help, pages and contract tests know it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from newcomer import HERE, package, python

from corecli.data.features import FeatureTable, save_features

PROBE = ("-m", "corecli", "probe", "--mode", "toy-mode", "--train", "z.safetensors", "--test", "z.safetensors")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more mode, beside a feature table with three classes far from each other."""
    folder = package(tmp_path_factory, "toy_mode.py", "commands/probe/modes")
    labels = torch.arange(60) % 3
    features = 8 * torch.eye(6)[labels] + torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    keys = [f"{row:02d}" for row in range(60)]
    table = FeatureTable(features=features, keys=keys, groups=keys, labels=labels.numpy(), header={})
    save_features(folder / "z.safetensors", table)
    return folder


def test_a_new_mode_scores_and_uses_its_option(copy: Path) -> None:
    ran = python(copy, *PROBE, "--json", "-q", "--set", "shrink=2")  # moves each mean beyond the average of all
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    assert (record["mode"], "knn_top1" in record) == ("toy-mode", False)
    assert record["top1"] == 0.0  # the contract tests show 1.0 by default


def test_unknown_options_of_a_new_mode_are_refused(copy: Path) -> None:
    for words, message in (
        (("--set", "shrnk=1"), "unknown option of toy-mode 'shrnk' (did you mean 'shrink'?)"),
        (("--epochs", "3"), "--epochs does not apply to --mode toy-mode (it is an option of finetune, sgd, sweep)"),
        (("--shrink", "1"), "--shrink is an option of toy-mode (write --set shrink=VALUE)"),
        (("--val", "z.safetensors"), "--val does not apply to --mode toy-mode"),
    ):
        ran = python(copy, *PROBE, *words, "--dry-run")
        assert (ran.returncode, ran.stdout) == (2, "")
        assert message in ran.stderr


def test_help_completion_and_man_page_list_a_new_mode(copy: Path) -> None:
    assert "toy-mode" in python(copy, "-m", "corecli", "probe", "--help").stdout
    assert re.search(
        r'probe:--mode\) words="[^"]*\btoy-mode\b', python(copy, "-m", "corecli", "completion", "bash").stdout
    )
    page = "from corecli.cli.pages import man_pages; print(man_pages()['corecli-probe.1'])"
    assert r"\fBtoy\-mode\fR" in (shown := python(copy, "-c", page).stdout)
    assert r"Nearest class mean: " in shown and r"\-\-set shrink 0.0" in shown


def test_the_contract_tests_cover_a_new_mode(copy: Path) -> None:
    ran = python(copy, "-m", "pytest", HERE / "test_probe_modes.py", "-k", "toy-mode", "-p", "no:cacheprovider")
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE), ran.stdout
