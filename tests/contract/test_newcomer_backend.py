"""A caption backend by somebody else: one file in `captions/`, nothing else, and the whole program knows it."""

from __future__ import annotations

import json
from pathlib import Path

import newcomer
import pytest

HERE = Path(__file__).parent
CAPTIONS = ("-m", "corecli", "captions", "--backend", "toy-backend", "--num", "5")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has one more backend."""
    return newcomer.package(tmp_path_factory, "toy_backend.py", "captions")


def test_a_newcomer_writes_captions(package: Path) -> None:
    ran = newcomer.python(package, *CAPTIONS, "--set", "mood=stormy", "--out", "o.jsonl")
    assert (ran.returncode, ran.stdout) == (0, "o.jsonl\n"), ran
    records = [json.loads(line) for line in (package / "o.jsonl").read_text().splitlines()]
    assert len(records) == 5
    assert records[0]["caption"].startswith("A stormy day with ") and records[0]["backend"] == "toy-backend"
    assert records[0]["params"] == {"mood": "stormy", "exclamations": 0}
    again = newcomer.python(package, *CAPTIONS, "--set", "mood=calm", "--out", "o.jsonl")
    assert again.returncode == 73 and "exists with another config: set: " in again.stderr


def test_help_completion_and_the_manual_page_know_a_newcomer(package: Path) -> None:
    show = (
        "from corecli.cli.pages import completion as c, man_pages; print(man_pages()['corecli-captions.1'], c('fish'))"
    )
    shown = newcomer.python(package, "-c", show).stdout.replace("\\-", "-")
    assert "Writes a short sentence about the mood of every concept. Options: --set mood=calm" in shown
    assert any("toy-backend" in line for line in shown.splitlines() if "-l backend" in line)
    helped = newcomer.python(package, "-m", "corecli", "captions", "--help").stdout
    assert ",toy-backend," in "".join(helped.split())  # a line may be broken within


REFUSED = {
    "--url http://a": "--url does not apply to --backend toy-backend (it is an option of server)",
    "--form words": "--form does not apply to --backend toy-backend (it is an option of grammar)",
    "--set moody=1": "unknown option of toy-backend 'moody' (did you mean 'mood'?)",
    "--set exclamations=many": "exclamations: 'many' is not a valid int",
    "--set mood=!": "'!' is not a mood (write one word)",
    "--mood calm": "--mood is an option of toy-backend (write --set mood=VALUE)",
}


def test_what_does_not_apply_to_a_newcomer_is_refused(package: Path) -> None:
    program = "import sys; from corecli.cli.app import run_line; lines = sys.argv[1:]"
    program += "; print([run_line([*'captions --backend toy-backend --dry-run'.split(), *x.split()]) for x in lines])"
    ran = newcomer.python(package, "-c", program, *REFUSED)
    assert ran.stdout == f"{[2] * len(REFUSED)}\n"
    assert ran.stderr.splitlines() == [f"corecli captions: error: {message}" for message in REFUSED.values()]


def test_a_newcomer_is_held_to_the_contract(package: Path) -> None:
    ran = newcomer.python(
        package, "-m", "pytest", HERE / "test_backends.py", "-k", "toy-backend", "-p", "no:cacheprovider"
    )
    assert ran.returncode == 0, ran.stdout
    assert "5 passed" in ran.stdout
