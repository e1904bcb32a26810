"""Captions that are damaged, or that are no file, end in one line that names the place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ran import Run, refused

from corecli.data.imageset import open_set

SHOW = ("show", "digits:8:test", "--out", "o.png", "--captions")
DEEP = '{"id": "a", "caption": ' + "[" * 100_000 + "]" * 100_000 + "}"
CASES = {
    "damaged": ('{"id": "a", "caption": "A dog."}\n{"id": "b", "cap\n', "line 2 is not JSON: "),
    "deep": (DEEP, "line 1 is not JSON: nested more than 100 levels deep"),
    "deeper than allowed": (
        '{"caption": "a", "x": ' + "[" * 150 + "]" * 150 + "}",
        "line 1 is not JSON: nested more than 100",
    ),
    "huge number": ('{"caption": "a", "id": ' + "9" * 40 + "}", "line 1 is not JSON: an integer has more than 64 bits"),
    "endless number": ('{"caption": "a", "id": ' + "9" * 10_000 + "}", "line 1 is not JSON: "),
    "number": ('{"id": "a", "caption": 7}', "line 1 has no caption"),
    "list": ('{"id": "a", "caption": ["a"]}', "line 1 has no caption"),
    "no object": ('{"caption": "a"}\n[1]', "line 2 has no caption"),
    "id": ('{"id": {}, "caption": "a"}', "the id of line 1 is neither a string nor a number"),
    "class": ('{"class": 3, "caption": "a"}', "the class of line 1 is not a string"),
    "twice": ('{"id": "a", "caption": "a"}\n{"id": "a", "caption": "b"}', "c.jsonl: "),
    "bytes": ("\udcff\udcfe", "not a text file in UTF-8"),
    "empty": ("\n\n", "the file has no captions"),
    "escape": ('{"caption": "a"}\n{"\x1b[31m', "line 2 is not JSON: "),
}


def digits() -> str:
    """A caption for each of the digits."""
    return "\n".join(json.dumps({"id": key, "caption": "a digit"}) for key in open_set("digits:8:test").rows.keys)


@pytest.mark.parametrize("case", CASES)
def test_damaged_captions(run: Run, tiny: Path, case: str) -> None:
    text, words = CASES[case]
    Path("c.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    train = ("train-gen", "--preset", "tiny", "--data", "digits:8:test", "--steps", "1", "--out", "o.pt", "--captions")
    for line in (train, SHOW) if case != "twice" else (train,):
        ran = run(*line, "c.jsonl")
        refused(ran, line[0], 65, "c.jsonl: ", words)
        assert "\x1b" not in ran.err
    assert {path.name for path in Path().iterdir()} == {"c.jsonl"}


def test_a_csv_with_a_huge_cell(run: Run) -> None:
    Path("c.csv").write_text('a.png,"' + "a" * 200_000 + '"')
    refused(run(*SHOW, "c.csv"), "show", 65, "c.csv: line 1 is not CSV: ")


def test_captions_from_a_pipe_are_refused(run: Run) -> None:
    """A pipe can be read once only, and a run reads its captions again when it resumes."""
    reader, writer = os.pipe()
    try:
        os.write(writer, digits().encode()[:4096])
        refused(run(*SHOW, f"/dev/fd/{reader}"), "show", 65, "not a regular file (save the content in a file)")
    finally:
        os.close(reader)
        os.close(writer)
    os.mkfifo("pipe.jsonl")
    refused(run(*SHOW, "pipe.jsonl"), "show", 65, "pipe.jsonl: not a regular file")


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "pipe"])
def test_captions_from_standard_input(tmp_path: Path, is_file: bool) -> None:
    """`/dev/stdin` is read if it is a file; a pipe is refused without waiting for its end."""
    (tmp_path / "c.jsonl").write_text(digits())
    words = [sys.executable, "-m", "corecli", *SHOW, "/dev/stdin"]
    reader, writer = os.pipe()
    with open(tmp_path / "c.jsonl") as file:
        stdin = file if is_file else reader
        ran = subprocess.run(words, stdin=stdin, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    os.close(reader)
    os.close(writer)
    refusal = "corecli show: error: /dev/stdin: not a regular file (save the content in a file)\n"
    assert (ran.returncode, ran.stderr) == ((0, "") if is_file else (65, refusal))


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct)
def test_outputs_have_the_permissions_of_the_umask(run: Run, tiny: Path, mask: int) -> None:
    """Files have 0666 and folders 0777 without the bits of the mask, temporary names notwithstanding."""
    before = os.umask(mask)
    try:
        for line in (
            ("inflate", "--real", "digits:8:test", "--materialize", "set"),
            ("inflate", "--real", "digits:8:test", "--materialize", "set.safetensors"),
            ("inflate", "--real", "digits:8:test", "--materialize", "set.tar"),
            ("inflate", "--real", "digits:8:test", "--out", "m.json"),
            ("captions", "--num", "3", "--out", "c.jsonl"),
            ("show", "digits:8:test", "--out", "t.png"),
            ("extract", "--data", "digits:8:test", "--encoder", tiny / "f.safetensors", "--out", "z.safetensors"),
        ):
            ran = run(*line, "--quiet")
            assert ran.code == 0, ran.err
    finally:
        os.umask(before)
    found = {str(path): path.stat().st_mode & 0o777 for path in Path().rglob("*")}
    assert len(found) > 300
    wrong = {
        path: oct(mode) for path, mode in found.items() if mode != (0o777 if Path(path).is_dir() else 0o666) & ~mask
    }
    assert wrong == {}
