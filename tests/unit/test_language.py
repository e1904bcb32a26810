"""The language of the code: short option help, no words that hide their subject, and pages that name existing files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from corecli.base import config as cfg
from corecli.cli.verbs import VERBS, options_of

ROOT = Path(__file__).parents[2]
LONGEST_HELP = 90  # characters, without the default that the program appends
WORDS = re.compile(r"(?<![A-Za-z])(told|tell|tells|asked|lying|begun|lack|lacks)(?![A-Za-z])", re.IGNORECASE)


@pytest.mark.parametrize("verb", VERBS)
def test_option_help_is_one_short_line(verb: str) -> None:
    described = cfg.described(options_of(verb).Config)
    long = {name: len(option.help) for name, (_, option, _) in described.items() if len(option.help) > LONGEST_HELP}
    assert not long
    assert not [name for name, (_, option, _) in described.items() if "\n" in option.help or option.help.endswith(".")]


def test_code_avoids_words_that_hide_their_subject() -> None:
    """As words and as parts of identifiers such as `_told`."""
    found = {}
    for path in sorted((ROOT / "corecli").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if WORDS.search(line) and "file.tell()" not in line:
                found[f"{path.relative_to(ROOT)}:{number}"] = line.strip()
    assert not found, "\n".join(f"{place}: {line}" for place, line in found.items())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_name_files_that_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    named = re.findall(r"`((?:corecli|tests|recipes|man)/[\w./-]*)`", text)
    named += re.findall(r"\]\(([\w.-]+\.md)\)", text)
    assert len(named) > 5
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_table_of_registries_names_files_that_exist() -> None:
    rows = re.findall(r"^\| an? .*toy_.*$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) == 10
    for row in rows:  # the folder, files to copy, the newcomer test and its toy
        folder, *files, test, toy = re.findall(r"`([\w./]+)`", row.replace("`fid`", "").replace("`probe`", ""))
        assert all((ROOT / folder / file).exists() for file in files), row
        assert (ROOT / Path(test).parent / toy).is_file(), row
