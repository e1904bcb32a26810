"""A verb that somebody else writes: one file in `commands/`, and the command line knows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import newcomer
import pytest

DIGITS = ("toy-verb", "--data", "digits:8")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that has one more verb."""
    return newcomer.package(tmp_path_factory, "toy_verb.py", "commands")


@pytest.fixture(scope="module")
def pages(package: Path) -> Path:
    """Man pages and completion scripts of the copy."""
    for folder in ("man", "completions"):
        (package / folder).mkdir()
    written = newcomer.python(package, "-m", "corecli.cli.pages", "man", "completions")
    assert written.returncode == 0, written.stderr
    return package


def test_it_runs(package: Path) -> None:
    ran = newcomer.python(package, "-m", "corecli", *DIGITS)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "num\t1797\n", "")


def test_it_has_json_and_dry_run(package: Path) -> None:
    out = package / "counts.json"
    line = ("-m", "corecli", *DIGITS, "--preset", "classes", "--out", out, "--json")
    record = json.loads(newcomer.python(package, *line, "--dry-run").stdout)
    assert (record["verb"], record["num"], record["config"]["by_class"]) == ("toy-verb", 1797, True)
    assert not out.exists()
    counts = json.loads(newcomer.python(package, *line).stdout)
    assert counts == json.loads(out.read_text())
    assert sum(counts.values()) == 2 * 1797


def test_it_reads_a_config_file_and_refuses_unknown_options(package: Path) -> None:
    (package / "c.toml").write_text('unit = "thousands"\n')
    read = newcomer.python(package, "-m", "corecli", *DIGITS, "--config", "c.toml")
    assert (read.returncode, read.stdout) == (0, "num\t1.797\n")
    for more, message in (
        (("--by-clas",), "No such option: --by-clas (Possible options: --by-class"),
        (("--unit", "image"), "unknown unit 'image' (did you mean 'images'?)"),
    ):
        refused = newcomer.python(package, "-m", "corecli", *DIGITS, *more)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith(f"corecli toy-verb: error: {message}")
    unknown = newcomer.python(package, "-m", "corecli", "toy-verv")
    assert "did you mean 'toy-verb'?" in unknown.stderr


def test_it_is_listed_at_its_place(package: Path) -> None:
    listed = newcomer.python(package, "-m", "corecli", "--help").stdout
    assert "count the images of a set" in listed
    assert listed.index("\n  train-gen ") < listed.index("\n  toy-verb ") < listed.index("\n  captions ")


def test_it_has_a_man_page(pages: Path) -> None:
    page = (pages / "man/corecli-toy-verb.1").read_text().replace(r"\-", "-")
    for text in ("Count the images of a set", r"\fB--by-class\fR", "PRESETS", "corecli toy-verb --data digits:8"):
        assert text in page
    assert r"\fBcorecli-toy-verb\fR(1)" in (pages / "man/corecli.1").read_text().replace(r"\-", "-")


@pytest.mark.parametrize(
    ("words", "offered"),
    [(("toy",), "toy-verb"), (("toy-verb", "--by"), "--by-class"), (("toy-verb", "--unit", "t"), "thousands")],
)
def test_bash_completes_it(pages: Path, words: tuple[str, ...], offered: str) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    program = 'source completions/corecli; COMP_WORDS=(corecli "$@"); COMP_CWORD=$#; _corecli; echo "${COMPREPLY[@]}"'
    line = ["bash", "--norc", "-c", program, "bash", *words]
    assert subprocess.run(line, cwd=pages, capture_output=True, text=True, check=True).stdout == f"{offered}\n"


def test_zsh_and_fish_know_it(pages: Path) -> None:
    zsh, fish = ((pages / "completions" / name).read_text() for name in ("_corecli", "corecli.fish"))
    assert "toy-verb:count the images of a set" in zsh
    assert "--unit=[unit of the numbers]:value:(images thousands)" in zsh
    assert "-a toy-verb -d 'count the images of a set'" in fish
    assert "'__fish_seen_subcommand_from toy-verb' -l unit -x -a 'images thousands'" in fish
