"""Values that no option can mean, sets that no picture can show, and names that a terminal would act on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from ran import Run, refused

SSL = "train-ssl --data digits:8:test --preset tiny --steps 3 --out o"
GEN = "train-gen --data digits:8:test --preset tiny --steps 3 --out o"
HUGE = "1" + "0" * 23


def image_at(path: Path, px: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (px, px)).save(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{SSL} --lr nan", ["--lr: nan is not a finite number"]),
        (f"{SSL} --lr -inf", ["--lr: -inf is not a finite number"]),
        (f"{SSL} --set temperature=nan", ["temperature: nan is not a finite number"]),
        (f"{SSL} --augment-set jitter=nan", ["jitter: nan is not a finite number"]),
        (f"{SSL} --augment-set sigma=0.1,inf", ["sigma: inf is not a finite number"]),
        (f"{GEN} --set channel_mult=1,{HUGE}", [f"channel_mult: {HUGE} does not fit into 64 bits"]),
        ("inflate --real s --out o --repeat 1e999", ["--repeat: inf is not a finite number"]),
        (f"{SSL} --seed {HUGE}", [f"--seed: {HUGE} does not fit into 64 bits"]),
        (f"{SSL} --seed {'7' * 5000}", ["--seed: '777", "... is not a valid int"]),
        (f"{SSL} --steps {HUGE}", [f"'{HUGE}' is too long"]),
        (f"{SSL} --steps {'9' * 400}ep", ["is too long"]),
        (f"{SSL} --workers 1000", ["--workers 1000 is above 256"]),
        (f"{SSL} --workers ²", ["--workers '²' is neither a number nor auto"]),
        (f"{SSL} --nproc ²", ["--nproc '²' is neither a number nor auto"]),
        (f"{SSL} --nnodes many --rdzv-endpoint localhost:1", ["--nnodes 'many' is neither a number nor MIN:MAX"]),
    ],
    ids=lambda v: " ".join(v.split()[-2:])[:30] if isinstance(v, str) else "",
)
def test_values_without_bounds_are_refused(run: Run, line: str, words: list[str]) -> None:
    refused(run(*line.split()), line.split()[0], 2, *words)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_config_files_and_the_environment_have_the_same_bounds(
    run: Run, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    shown = str(float(value))
    Path("c.toml").write_text(f"lr = {value}\n")
    refused(run(*SSL.split(), "--config", "c.toml"), "train-ssl", 78, f"c.toml: lr: {shown} is not a finite number")
    json_value = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(value, value)
    Path("c.json").write_text(f'{{"seed": {json_value}}}')
    refused(run(*SSL.split(), "--config", "c.json"), "train-ssl", 78, f"c.json: seed: {shown} is not a valid int")
    monkeypatch.setenv("CORECLI_LR", value)
    refused(run(*SSL.split()), "train-ssl", 78, f"CORECLI_LR: {shown} is not a finite number")


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_processes_are_bounded_by_the_cores(run: Run, more: list[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    words = f"--nproc 100000 is more than 4 processes for each of the {cores} cores (use at most {4 * cores})"
    refused(run(*SSL.split(), "--nproc", "100000", *more), "train-ssl", 2, words)


def test_a_mixture_that_drops_every_image_is_refused(run: Run) -> None:
    image_at(Path("s/k/0.png"), 8)
    words = "o.json: no real image has a synthetic partner, so that an epoch has no images"
    refused(run("inflate", "--real", "s", "--missing", "drop", "--out", "o.json"), "inflate", 65, words)
    assert not Path("o.json").exists()


def test_images_of_two_sizes_are_not_drawn_together(run: Run) -> None:
    image_at(Path("s/k/0.png"), 8)
    image_at(Path("real/k/0.png"), 12)
    line = ["show", "s", "--real", "real", "--out", "t.png"]
    words = "images of 8 x 8 cannot be drawn beside real ones of 12 x 12 (--image-size N resizes"
    refused(run(*line), "show", 65, words)
    assert run(*line, "--image-size", "8").code == 0


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


def test_results_name_files_that_are_not_utf8(run: Run) -> None:
    image_at(Path("s/k/0.png"), 8)
    line = ["show", "s", "--out", "t\udcff.png"]
    assert run(*line).out == "t\\udcff.png\n"
    assert run(*line, "--json").out == '{"path": "t\\udcff.png"}\n'
