"""Man pages and completions: up to date, complete, well-formed, installed, and completing."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from corecli.base import config as cfg
from corecli.base import registry
from corecli.cli import pages
from corecli.cli.verbs import VERBS, options_of

ROOT = Path(__file__).parents[2]
MAN, COMPLETIONS = ROOT / "man", ROOT / "completions"
PAGES = sorted(MAN.iterdir())
REGENERATE = "python -m corecli.cli.pages man completions"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"no {program} here")


def silent(*argv: object, **options: object) -> None:
    """A program that ends well and says nothing."""
    ended = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_pages_and_completions_are_up_to_date(tmp_path: Path) -> None:
    for folder in ("man", "completions"):
        (tmp_path / folder).mkdir()
    pages.main([str(tmp_path / "man"), str(tmp_path / "completions")])
    for folder in ("man", "completions"):
        fresh = {path.name: path.read_text() for path in (tmp_path / folder).iterdir()}
        kept = {path.name: path.read_text() for path in (ROOT / folder).iterdir() if path.suffix != ".7"}
        assert kept.keys() == fresh.keys(), f"run {REGENERATE}"
        for name, text in fresh.items():
            assert kept[name] == text, f"{folder}/{name} has drifted: run {REGENERATE}"


def test_every_verb_is_on_the_top_page() -> None:
    text = plain((MAN / "corecli.1").read_text())
    for verb, summary in VERBS.items():
        assert f"corecli-{verb}(1)\n{summary}\n" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_on_its_page(verb: str) -> None:
    text = plain((MAN / f"corecli-{verb}.1").read_text())
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", '"SEE ALSO"'):
        assert f"\n.SH {section}\n" in text
    assert f"\ncorecli-{verb} - " in text
    module = options_of(verb)
    for name, (f, opt, hint) in cfg.described(module.Config).items():
        term = cfg.metavar(opt, hint) if opt.positional else ", ".join(cfg.spellings(name, f, opt, hint))
        assert re.search(rf"^\.TP\n{re.escape(term)}", text, re.MULTILINE), term
        assert opt.help in text
    for name in module.PRESETS:
        assert f".TP\n{name}\n" in text
    for _, line in getattr(module, "EXAMPLES", ()):
        assert f"corecli {verb} {line}" in text


def plain(roff: str) -> str:
    return re.sub(r"\\f[BIR]", "", roff).replace(r"\-", "-").replace(r"\e", "\\").replace(r"\&", "")


def test_examples_are_lines_the_parser_takes() -> None:
    for verb in VERBS:
        module = options_of(verb)
        for _, line in getattr(module, "EXAMPLES", ()):
            words = line.split()
            known = {word for n, d in cfg.described(module.Config).items() for word in cfg.spellings(n, *d)}
            assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("verb", VERBS)
def test_presets_on_a_page_can_be_copied_to_the_command_line(verb: str) -> None:
    """Each preset is shown as options with values that the parser takes, such as --no-lars-clip and 0.44,0.45,0.11."""
    module = options_of(verb)
    options = cfg.described(module.Config)
    text = plain((MAN / f"corecli-{verb}.1").read_text())
    for preset, values in module.PRESETS.items():
        shown = re.search(rf"^\.SH PRESETS\n.*?^\.TP\n{re.escape(preset)}\n(.*?)$", text, re.MULTILINE | re.DOTALL)
        assert shown is not None
        required = {n: "x" for n, (f, _, _) in options.items() if f.default is cfg.MISSING and n not in values}
        copied = cfg.resolve(module.Config, required | given_by(shown[1].split(), options), presets={}, environment={})
        chosen = cfg.resolve(module.Config, required | {"preset": preset}, presets=module.PRESETS, environment={})
        assert cfg.values(copied) == cfg.values(chosen) | {"preset": None}


def given_by(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """The values of options on a command line, by field."""
    names = {word: name for name, described in options.items() for word in cfg.spellings(name, *described)}
    given: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name = names.get(word, "")
        if name and cfg.scalar(options[name][2]) is bool:
            given[name] = not word.startswith("--no-")
        elif name and cfg.kind_of(options[name][2])[1]:
            given[name] = (*given.get(name, ()), following)
        elif name:
            given[name] = following
    return given


@needs("mandoc")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing(page: Path) -> None:
    silent("mandoc", "-T", "lint", "-W", "warning", page)


@needs("groff")
@needs("man")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_shows_the_page_without_warnings(page: Path) -> None:
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    line = ["man", "--warnings", "-l", str(page)]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environment)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert page.stem in shown.stdout


@pytest.mark.parametrize(("shell", "name"), pages.SHELLS.items())
def test_shells_can_parse_the_completions(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    silent(shell, "-n", COMPLETIONS / name)


@needs("bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sam"], ["sample"]),
        (["train-"], ["train-gen", "train-ssl"]),
        (["--v"], ["--version"]),
        (["sample", "--sampler", ""], [*registry.choices("diffusion/samplers")]),
        (["sample", "--sampler", "dd"], ["ddim", "ddpm"]),
        (["sample", "--sampler", "="], [*registry.choices("diffusion/samplers")]),
        (["sample", "--sampler", "=", "h"], ["heun"]),
        (["sample", "--sam"], ["--sampler"]),
        (["train-gen", "--preset", "icgan"], ["icgan-128", "icgan-256", "icgan-64"]),
        (["train-gen", "--no-f"], ["--no-flip"]),
        (["sample", "--steps", ""], []),
        (["sample", "--ckpt", ""], ["a file.pt", "sample"]),
        (["sample", "--ckpt", "a"], ["a file.pt"]),
        (["show", ""], ["a file.pt", "sample"]),
        (["show", "--col"], ["--columns"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
    ],
    ids=" ".join,
)
def test_bash_completes(tmp_path: Path, words: list[str], offered: list[str]) -> None:
    (tmp_path / "a file.pt").touch()
    (tmp_path / "sample").mkdir()
    program = f"""
        source '{COMPLETIONS / pages.SHELLS["bash"]}'
        COMP_WORDS=(corecli "$@"); COMP_CWORD=$#
        _corecli
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    line = ["bash", "--norc", "-c", program, "bash", *words]
    found = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True)
    assert found.stderr == ""
    assert sorted(filter(None, found.stdout.split("\n"))) == offered


@needs("fish")
def test_fish_completes(tmp_path: Path) -> None:
    (tmp_path / "g.pt").touch()
    typed = {
        "corecli sam": ["sample"],
        "corecli sample --sampler d": ["ddim", "ddpm", "dpmpp"],
        "corecli sample --sam": ["--sampler"],
        "corecli train-gen --no-fl": ["--no-flip"],
        "corecli sample --ckpt ": ["g.pt"],
        "corecli completion ": ["bash", "fish", "zsh"],
    }
    lines = [f"source '{COMPLETIONS / pages.SHELLS['fish']}'"]
    lines += [f'complete -C "{line}"; echo ---' for line in typed]
    ended = subprocess.run(
        ["fish", "--no-config", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = [[text.split("\t")[0] for text in part.split()] for part in re.sub(r"\t.*", "", ended.stdout).split("---")]
    assert found[:-1] == list(typed.values())


@needs("zsh")
@pytest.mark.parametrize("how", ["autoloaded", "sourced"])
def test_zsh_completes(how: str) -> None:
    path = COMPLETIONS / pages.SHELLS["zsh"]
    setup = "autoload -U compinit; compinit -u -D"
    setup = f"fpath=({path.parent} $fpath); {setup}" if how == "autoloaded" else f"{setup}; source {path}"
    for typed, wanted in (
        ("corecli sam\t", "corecli sample "),
        ("corecli sample --sampler dpm\t", "--sampler dpmpp "),
        ("corecli sample --sampler=dpm\t", "--sampler=dpmpp "),
        ("corecli train-gen --no-fl\t", "--no-flip "),
    ):
        assert wanted in typed_at("zsh", setup, typed, wanted)


def typed_at(shell: str, setup: str, typed: str, wanted: str) -> str:
    """What an interactive shell shows after `typed`, read until it shows `wanted`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(shell, [shell, "-f", "-i"], {**os.environ, "TERM": "dumb", "COLUMNS": "200"})
    try:
        os.write(terminal, f"{setup}; print REA''DY\n".encode())
        read_until(terminal, "READY")
        os.write(terminal, typed.encode())
        return read_until(terminal, wanted)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: str, patience_sec: float = 20.0) -> str:
    shown, end = b"", time.monotonic() + patience_sec
    while wanted.encode() not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 1 << 16)
    return shown.decode()


def test_a_wheel_installs_pages_and_completions(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("corecli", "man", "completions"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = [name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()]
    manual = {f"share/man/man{page.suffix[1:]}/{page.name}" for page in PAGES}
    assert {name for name in names if name} == manual | {
        "share/bash-completion/completions/corecli",
        "share/zsh/site-functions/_corecli",
        "share/fish/vendor_completions.d/corecli.fish",
    }
