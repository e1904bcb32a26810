"""Values that no option can mean, sets that no picture can show, and names that a terminal would act on."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from ran import Run


def image_at(path: Path, px: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (px, px)).save(path)


def test_names_reach_the_terminal_as_escapes(run: Run) -> None:
    for number, name in enumerate(("red\x1b[31m", "two\nlines", "back\u202ewards", "été")):
        image_at(Path("s", name, f"{number}.png"), 8)
    ran = run("inflate", "--real", "s", "--out", "m.json")
    assert ran.code == 0
    assert [line.split("\t")[0] for line in ran.out.splitlines()[-4:]] == [
        "class back\\u202ewards", "class red\\x1b[31m", "class two\\nlines", "class été",
    ]  # fmt: skip
    ran = run("inflate", "--real", "s", "--out", "m.json", "--json")
    assert ran.out.count("\n") == 1
    assert '"red\\u001b[31m"' in ran.out


def test_errors_and_notes_are_escaped(run: Run) -> None:
    ran = run("show", "\x1b]0;title\x07", "--out", "t.png")
    assert ran.err.startswith("corecli show: error: \\x1b]0;title\\x07: no such file")
    for number in range(20):
        image_at(Path(f"s/{number}.png"), 8)
    Path("s/a\x1b[31m.png").write_bytes(b"no image")
    ran = run("inflate", "--real", "s", "--out", "m.json", "--on-bad", "skip")
    assert (ran.code, "\x1b" in ran.err) == (0, False)
    assert "a\\x1b[31m.png" in ran.err
