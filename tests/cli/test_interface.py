"""The command line itself: what it prints where, what it imports, where values come from, how it ends."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pytest
from ran import Run
from steps import before_step

from corecli import __version__
from corecli.base import checkpoint, registry
from corecli.base import config as cfg
from corecli.base.files import sniff
from corecli.base.outcome import to_json_line
from corecli.cli.verbs import VERBS, command_of, options_of

PACKAGE = Path(__file__).parents[2] / "corecli"
WORKING = [verb for verb in VERBS if verb != "completion"]
LINES = {
    "extract": "extract --data $tiny/real.safetensors --encoder $tiny/f.safetensors --out o",
    "train-gen": "train-gen --preset tiny --data $tiny/real.safetensors --features $tiny/z.safetensors --out o",
    "sample": "sample --ckpt $tiny/g.pt --features $tiny/z.safetensors --rows ::50 --steps 1 --out o",
    "inflate": "inflate --real $tiny/real.safetensors --synthetic $tiny/syn --out o",
    "train-ssl": "train-ssl --preset tiny --data $tiny/mix.json --batch-size 64 --out o",
    "probe": "probe --train $tiny/real.safetensors --test $tiny/syn --encoder $tiny/f.safetensors --layer projector",
    "fid": "fid --reference $tiny/real.safetensors --samples $tiny/syn --extractor $tiny/f1.safetensors --save-stats o",
    "captions": "captions --num 9 --out o",
    "show": "show $tiny/syn --real $tiny/real.safetensors --out o",
    "verify": "verify $tiny/real.safetensors",
}


def words_of(line: str, **places: object) -> list[str]:
    return Template(line).substitute(places).split()


def process(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A real process, run to its end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-m", "corecli", *map(str, argv)], text=True, timeout=120, **streams)


@pytest.fixture(autouse=True)
def short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of as many steps as --epochs says, not of 500 at least."""
    from corecli.metrics.parts import linear_probe

    monkeypatch.setattr(linear_probe, "ProbeOptions", partial(linear_probe.ProbeOptions, min_steps=5))


# Imports


def test_help_completion_and_dry_run_import_no_torch(tiny: Path, tmp_path: Path) -> None:
    lines = ["--help", "--version", *(f"{verb} --help" for verb in VERBS)]
    lines += [f"completion {shell}" for shell in ("bash", "zsh", "fish")]
    dry = [f"{Template(line).substitute(tiny=tiny)} --dry-run" for line in LINES.values()]
    lines += [*dry, *(f"{line} --json" for line in dry)]
    program = f"""
import contextlib, io, sys
from corecli.cli.app import run_line
for line in {lines!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run_line(line.split()) == 0, line
    assert out.getvalue(), line
    heavy = {{"torch", "torchvision", "diffusers", "timm", "scipy", "sklearn"}} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)
    assert list(tmp_path.iterdir()) == []


# --dry-run


@pytest.mark.parametrize("verb", WORKING)
def test_dry_run_prints_the_config_and_what_would_be_written(run: Run, tiny: Path, verb: str) -> None:
    line = [*words_of(LINES[verb], tiny=tiny), "--dry-run"]
    ran = run(*line, "--json")
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert record["verb"] == verb
    assert record["config"].keys() == cfg.described(options_of(verb).Config).keys()
    plan = {name: value for name, value in record.items() if name not in ("verb", "config")}
    assert plan
    if verb not in ("probe", "verify"):
        assert "o" in (plan.get("out"), *plan.get("writes", ()))
    printed = dict(text.split("\t", 1) for text in run(*line).out.splitlines())
    assert printed["dry_run"] == "true"
    assert printed["seed"] == "0"
    assert printed.keys() >= plan.keys()
    assert list(Path().iterdir()) == []


def test_dry_run_resolves_presets(run: Run) -> None:
    line = ("train-gen", "--preset", "adm-cifar", "--data", "digits:32", "--out", "o", "--dry-run", "--json")
    config = json.loads(run(*line, "--set", "channels=64").out)["config"]
    assert ("channels=64" in config["set"], "dropout=0.1" in config["set"], config["steps"]) == (True, True, 500_000)


# Streams


@pytest.mark.parametrize("verb", WORKING)
def test_stdout_is_the_result_alone(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """What a library prints, by Python or by C, while sets are opened or while a verb runs, goes to stderr."""
    module = command_of(verb)

    def noisy(name: str) -> Any:
        original = getattr(module, name)

        def call(*args: Any) -> Any:
            print(f"printed by {name}")
            os.write(1, f"written by {name}\n".encode())
            return original(*args)

        return call

    for name in ("check", "run"):
        monkeypatch.setattr(module, name, noisy(name))
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # as in a process of its own; pytest's is a file
    line = words_of(LINES[verb], tiny=tiny)
    line += ["--steps", "1"] if verb.startswith("train-") else []
    line += ["--batch-size", "32", "--set", "head_channels=16"] if verb == "train-gen" else []
    ran = run(*line, "--json")
    assert ran.code == 0, ran.err
    assert isinstance(json.loads(ran.out), dict)  # one line, and nothing else
    assert ran.out.count("\n") == 1
    for name in ("check", "run"):
        assert f"printed by {name}" in ran.err
        assert f"written by {name}" in ran.err


def test_progress_and_notes_go_to_stderr_and_quiet_silences_them(run: Run, tiny: Path) -> None:
    line = words_of(LINES["extract"], tiny=tiny)
    ran = run(*line)
    assert ran.out == "o\n"
    assert re.fullmatch(r"extract 355/355  \d+ img/s  0 s left\n", ran.err)
    assert run(*line).err == "corecli extract: already there, left alone\n"
    for again in (line, [*line, "--force"]):
        quiet = run(*again, "-q")
        assert (quiet.code, quiet.out, quiet.err) == (0, "o\n", "")


def test_training_prints_its_progress_at_log_steps(run: Run, tiny: Path) -> None:
    line = (*words_of(LINES["train-ssl"], tiny=tiny), "--steps", "4", "--log-every", "2")
    account, *shown = run(*line).err.splitlines()
    assert account.startswith("train-ssl: plan simclr for 4 steps")
    assert account.endswith("presentations 512")
    assert [text.split()[1] for text in shown] == ["2/4", "4/4"]
    for text in shown:
        assert re.search(r"loss [\d.]+ .*  \d+ img/s  \d+ s left$", text)
    logged = [json.loads(text) for text in Path("o.d/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged] == [2, 4]


def test_json_is_one_object_a_line_with_null_for_nan(run: Run, tiny: Path) -> None:
    def never(word: str) -> None:
        raise AssertionError(word)

    line = words_of(LINES["fid"], tiny=tiny)
    ran = run(*line, "--samples", tiny / "real.safetensors", "--json", "-q")
    records = [json.loads(text, parse_constant=never) for text in ran.out.splitlines()]
    assert [record["samples"] for record in records] == [str(tiny / "syn"), str(tiny / "real.safetensors")]
    assert records[0]["corrected"] is None
    assert records[1]["value"] == pytest.approx(0, abs=1e-6)
    odd = {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}, "e": 0.1 + 0.2, "f": Path("x")}
    assert to_json_line(odd) == '{"a": null, "b": [null, 1.5], "c": {"d": null}, "e": 0.30000000000000004, "f": "x"}'


def test_scores_are_name_tab_value_lines(run: Run, tiny: Path) -> None:
    lines = run(*words_of(LINES["probe"], tiny=tiny), "--seeds", "1", "--epochs", "1", "-q").out.splitlines()
    names = [line.split("\t")[0] for line in lines]
    assert names[:2] == ["top1", "top5"]
    assert all(0 <= float(line.split("\t")[1]) <= 1 for line in lines)


def test_no_escape_codes_outside_a_terminal(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.setenv(name, "1")
    for line in (["--help"], ["sample", "--help"], words_of(LINES["extract"], tiny=tiny), ["sample"]):
        ran = run(*line)
        assert "\x1b" not in ran.out + ran.err
        assert not re.search(r"[\u2500-\u257f]", ran.out + ran.err)


class Terminal:
    """A pseudo-terminal in place of a stream."""

    def __enter__(self) -> Terminal:
        self._ours, theirs = os.openpty()
        self.stream = os.fdopen(theirs, "w")
        self._parts: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shown()
        os.close(self._ours)

    def shown(self) -> str:
        """Everything shown, once the stream is closed."""
        if not self.stream.closed:
            self.stream.close()
        self._reader.join()
        return b"".join(self._parts).decode()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while part := os.read(self._ours, 1 << 16):
                self._parts.append(part)


@pytest.mark.parametrize("kind", ["plain terminal", "NO_COLOR", "dumb"])
def test_a_bar_with_speed_and_time_left_on_a_terminal(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if kind == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    with Terminal() as terminal:
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        assert run(*words_of(LINES["extract"], tiny=tiny), "--batch-size", "64").code == 0
        monkeypatch.undo()
        shown = terminal.shown()
    assert re.search(r"\d+ img/s", shown)
    if kind == "dumb":
        assert re.fullmatch(r"extract 355/355  \d+ img/s  0 s left\s+", shown)
        return
    assert "355/355" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"\d:\d\d:\d\d", shown)  # rich's column of the time left
    assert "\u2501" in shown
    assert bool(re.search(r"\x1b\[[\d;]*3\d(;\d+)*m", shown)) == (kind != "NO_COLOR")


def test_color_in_help_on_a_terminal_unless_refused(tmp_path: Path) -> None:
    shown = {}
    for kind in ("color", "NO_COLOR"):
        environment = {n: v for n, v in os.environ.items() if n not in ("NO_COLOR", "COLUMNS")}
        environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if kind == "NO_COLOR" else {})
        with Terminal() as terminal:
            assert process("sample", "--help", stdout=terminal.stream, env=environment).returncode == 0
            shown[kind] = terminal.shown()
    assert "\x1b[" in shown["color"]
    assert "\x1b" not in shown["NO_COLOR"]


# Where values come from


def test_option_environment_file_preset_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    of_tiny = options_of("train-gen").PRESETS["tiny"]
    Path("c.json").write_text('{"steps": 400, "lr": 0.5}')
    Path("c.toml").write_text('steps = 401\nset = ["channel-mult=1,3"]\nflip = false\n')
    line = ["train-gen", "--data", "digits:8", "--out", "o", "--dry-run", "--json"]

    def steps(*more: str) -> int:
        return json.loads(run(*line, *more).out)["config"]["steps"]

    assert steps() == 10_000
    assert steps("--preset", "tiny") == of_tiny["steps"] not in (10_000, 400, 401, 300, 200)
    assert steps("--preset", "tiny", "--config", "c.json") == 400
    assert steps("--config", "c.toml", "--preset", "tiny") == 401
    monkeypatch.setenv("CORECLI_STEPS", "300")
    assert steps("--preset", "tiny", "--config", "c.json") == 300
    assert steps("--preset", "tiny", "--config", "c.json", "--steps", "200") == 200
    monkeypatch.setenv("CORECLI_PRESET", "tiny")
    monkeypatch.setenv("CORECLI_CONFIG", "c.toml")
    monkeypatch.setenv("CORECLI_LEARN_SIGMA", "yes")
    config = json.loads(run(*line).out)["config"]
    found = [config[name] for name in ("preset", "flip", "learn_sigma")]
    assert found == ["tiny", False, True]
    # Options of the family from all sources together, the nearest source's word for a name winning.
    from_preset = cfg.named_values(of_tiny["set"])
    assert cfg.named_values(config["set"]) == {**from_preset, "channel_mult": "1,3"}
    given = json.loads(run(*line, "--set", "channel_mult=1,4", "--set", "dropout=0.2").out)["config"]["set"]
    assert cfg.named_values(given) == {**from_preset, "channel_mult": "1,4", "dropout": "0.2"}
    assert json.loads(run(*line, "--flip").out)["config"]["flip"] is True


def test_every_preset_resolves(run: Run, tiny: Path) -> None:
    for verb in WORKING:
        for name, preset in options_of(verb).PRESETS.items():
            of = SEGMENT if preset.get("mode") == "segment" else LINES[verb]
            if preset.get("arch") == "autoencoder":
                of = of.replace("--features $tiny/z.safetensors", "")
            line = [*words_of(of, tiny=tiny), *(["--batch-size", "8"] if "train" in verb else [])]
            ran = run(*line, "--preset", name, "--dry-run", "--json")
            assert ran.code == 0, (name, ran.err)
            assert json.loads(ran.out)["config"]["preset"] == name


def test_choices_listed_without_torch_are_complete() -> None:
    from corecli.commands.train_ssl.options import Config
    from corecli.nets.backbones import NAMES

    assert all(name in cfg.described(Config)["backbone"][1].help for name in NAMES)
    assert cfg.described(Config)["method"][1].names() == registry.choices("ssl")


# Finished targets


@pytest.mark.parametrize("verb", ["extract", "sample", "inflate", "train-ssl", "captions"])
def test_a_finished_target_is_left_alone(run: Run, tiny: Path, verb: str) -> None:
    line = [*words_of(LINES[verb], tiny=tiny), *(["--steps", "1"] if verb == "train-ssl" else []), "-q"]
    assert run(*line).code == 0
    before = contents(Path("o"))
    ran = run(*line[:-1], *(["--save-sec", "5"] if verb == "train-ssl" else []))
    assert ran.code == 0
    assert "left alone" in ran.err
    assert contents(Path("o")) == before
    differing = run(*line, "--seed", "1")
    assert (differing.code, differing.out) == (73, "")
    assert "o: exists with another config: seed: 0 there, 1 now (--force starts over)" in differing.err
    assert contents(Path("o")) == before
    assert run(*line, "--seed", "1", "--force").code == 0
    assert contents(Path("o")) != before


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    files = sorted(p for p in (path, *path.rglob("*")) if p.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


# Exit codes


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"corecli {__version__}\n"
    for words in (["--help"], ["-h"]):
        ran = run(*words)
        assert (ran.code, ran.err) == (0, "")
        assert all(f"  {verb} " in ran.out for verb in VERBS)
    for verb in VERBS:
        ran = run(verb, "--help")
        assert (ran.code, ran.err) == (0, "")
        for name, (_, opt, _) in cfg.described(options_of(verb).Config).items():
            assert opt.positional or cfg.flag(name) in ran.out


def test_without_a_verb_the_help_is_an_error(run: Run) -> None:
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: corecli" in ran.err


def test_a_signal_after_saving_is_75_and_the_same_line_resumes(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*words_of(LINES["train-ssl"], tiny=tiny), "--steps", "4", "-q")

    with monkeypatch.context() as patched:
        before_step(patched, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        ran = run(*line)
    assert (ran.code, ran.out) == (75, "")
    assert "stopped at step 3 of 4, saved (the same line resumes)" in ran.err
    assert not Path("o").exists()
    assert run(*line).out == "o\n"


@pytest.mark.parametrize("where", ["check", "run"])
def test_an_interrupt_with_nothing_saved_is_130(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_of("show"), where, interrupted)
    ran = run(*words_of(LINES["show"], tiny=tiny))
    assert (ran.code, ran.out, ran.err) == (130, "", "corecli show: error: interrupted, nothing saved\n")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_interrupt_while_torch_is_imported_is_130(tiny: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "corecli", *words_of(LINES["extract"], tiny=tiny)]
    child = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(6000):
        if "libtorch" in Path(f"/proc/{child.pid}/maps").read_text():
            break
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "corecli extract: error: interrupted, nothing saved\n")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def broken_pipe() -> Iterator[int]:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("line", ["completion fish", "--help", LINES["inflate"]])
def test_a_broken_pipe_is_141(tiny: Path, tmp_path: Path, broken_pipe: int, line: str) -> None:
    ended = process(*words_of(line, tiny=tiny), stdout=broken_pipe, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output_is_74() -> None:
    with open("/dev/full", "w") as stream:
        ended = process("completion", "bash", stdout=stream)
    assert ended.returncode == 74
    assert ended.stderr == "corecli completion: error: standard output: no space left on device\n"


def test_closed_streams_are_no_bug() -> None:
    line = f"{sys.executable} -m corecli completion bash >&- && {sys.executable} -m corecli smaple 2>&-"
    assert subprocess.run(["bash", "-c", line], capture_output=True, timeout=60).returncode == 2


def test_a_bug_has_a_traceback_and_a_mistake_one_with_debug(tmp_path: Path) -> None:
    environment = {**os.environ, "CORECLI_DEBUG": "1"}
    plain, debug = (process("show", "nothing", "--out", "o", cwd=tmp_path, env=e) for e in (None, environment))
    assert (plain.returncode, plain.stderr.count("\n")) == (66, 1)
    assert debug.returncode == 66
    assert "Traceback" in debug.stderr
    assert "no such file or directory" in debug.stderr


# No option is dead


def sources(verb: str) -> str:
    """The text of every module in which a field of the verb's Config may be read."""
    commands = PACKAGE / "commands"
    own = commands / verb.replace("-", "_")
    paths = [*(own.rglob("*.py") if own.is_dir() else [own.with_suffix(".py")]), *(commands / "parts").glob("*.py")]
    if verb == "completion":
        paths = [PACKAGE / "cli/completion.py"]
    if verb == "captions":  # its backends read them
        paths += (PACKAGE / "captions").rglob("*.py")
    return "\n".join(path.read_text() for path in [*paths, PACKAGE / "cli/app.py", PACKAGE / "engine/launch.py"])


def read_fields(text: str) -> set[str]:
    """Names read as `config.NAME`, or listed as strings for `getattr`."""
    nodes = list(ast.walk(ast.parse(text)))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return read | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_read_somewhere(verb: str) -> None:
    resolved_before = {"config", "preset"} | {name for name, verbs in IDLE.items() if verb in verbs}
    fields = cfg.described(options_of(verb).Config).keys() - resolved_before
    assert fields - read_fields(sources(verb)) == set()


TRAIN = "--batch-size 16 --steps 2 --quiet --data digits:8:test --out $out"
SSL = f"train-ssl --preset tiny --projector-dim 16 {TRAIN}.safetensors"
GEN = f"train-gen --preset tiny --set channel_mult=1,2 --set head_channels=16 {TRAIN}.safetensors"
PROBE = "probe --train $tiny/real.safetensors --test digits:8:train --layer projector --seeds 1 --json -q --encoder"
SEGMENT = (
    "probe --mode segment --train $tiny/images --train-masks $tiny/masks --test $tiny/images --test-masks $tiny/masks "
    "--encoder $tiny/vit.safetensors -q"
)
FID = "fid --reference $tiny/real.safetensors --samples $tiny/syn --json -q --extractor"

# A line, and options each of which must change what it computes, compared with the line alone.
EFFECTS: dict[str, list[str]] = {
    SSL: [
        "--data digits:8:train", "--seed 1", "--precision bf16", "--method supervised", "--stage simclr:1",
        "--init $tiny/f1.safetensors", "--backbone resnet18", "--stem imagenet", "--projector-hidden 8",
        "--projector-dim 8", "--image-size 16", "--augment weak", "--steps 3", "--batch-size 8", "--optimizer sgd",
        "--lr 0.1", "--weight-decay 0.5", "--weight-decay-end 0.9", "--schedule constant", "--warmup 1",
        "--set temperature=0.9", "--clip-grad 0.001", "--projector-norm batch", "--adam-beta2 0.5",
        "--images-per-group 2", "--accumulate 2", "--augment-set flip=0",
    ],
    f"{SSL} --optimizer lars --lr 0.4": ["--momentum 0.1", "--lars-eta 0.5", "--no-lars-clip"],
    f"{SSL} --method psl --features $tiny/z.safetensors": ["--features $tiny/z1.safetensors", "--views 1g"],
    f"{SSL} --method byol": ["--export teacher"],
    f"{SSL} --method dino": ["--local-px 4", "--views 2g1l"],
    f"{SSL} --backbone vit-micro/4": ["--drop-path 0.9", "--layer-decay 0.5"],
    f"{SSL} --data $tiny/pairs.json --batch-size 4 --steps 4 --views real:1g,mixed:1g": [
        "--views real:1g,synthetic:1g", "--synthetic-probability 0",
    ],
    f"{SSL} --data $tiny/mix.json --batch-size 300": ["--guard"],
    f"{GEN} --steps 4 --features $tiny/z.safetensors": [
        "--features $tiny/z1.safetensors", "--seed 1", "--precision bf16", "--steps 5", "--batch-size 8", "--lr 0.1",
        "--weight-decay 0.5", "--clip 0.001", "--ema-decay 0.1", "--set channels=48", "--set dropout=0.5",
        "--learn-sigma", "--schedule cosine",
        "--diffusion-steps 50", "--no-flip", "--condition-dropout 0.9", "--feature-normalization l2",
        "--feature-noise 1", "--ema power", "--objective v", "--objective edm", "--min-snr 5",
    ],
    f"{GEN} --objective flow": ["--flow-times logit-normal"],
    GEN: ["--data digits:8:train", "--condition labels", "--image-size 16"],
    "extract --data $tiny/syn --quiet --out $out.safetensors --encoder $tiny/f.safetensors": [
        "--data digits:8:test", "--encoder $tiny/f1.safetensors", "--layer backbone", "--image-size 4",
        "--precision bf16",
    ],
    "extract --data $tiny/syn --quiet --out $out.safetensors --encoder $tiny/vit.safetensors": [
        "--pool mean", "--pool cls+mean", "--blocks 2",
    ],
    "sample --rows 0,5,9,2 --steps 2 --quiet --out $out.npz --features $tiny/z.safetensors --ckpt $tiny/g.pt": [
        "--ckpt $tiny/undropped.pt", "--features $tiny/other_rows.safetensors", "--per-row 2", "--num 3",
        "--order shuffle", "--order class-balanced", "--rows 1", "--sampler ddpm", "--steps 3", "--eta 1",
        "--guidance 50", "--seed 1", "--precision bf16", "--format tar", "--spacing karras", "--image-size 4",
    ],
    "sample --rows 0,5 --steps 4 --guidance 50 -q --out $out.npz --features $tiny/z.safetensors --ckpt $tiny/g.pt": [
        "--guidance-interval 0,1",
    ],
    "sample --rows 0,5,9 --steps 2 -q --out $out --features $tiny/z.safetensors --ckpt $tiny/g.pt --format packed": [
        "--encoder $tiny/f.safetensors", "--encoder $tiny/f.safetensors --min-similarity 0.9", "--shards 2",
        "--shard 1/2",
    ],
    "inflate --json --out $out.json --real $tiny/real.safetensors --synthetic $tiny/syn": [
        "--real digits:8:train", "--synthetic digits:8:train", "--repeat 2", "--beta 0.5", "--fraction 0.5",
        "--per-class 3", "--first 9", "--share 1/2", "--order sequential", "--guard", "--missing drop", "--round 3",
        "--batch-size 8", "--fraction 0.5 --seed 1",
    ],
    "inflate --json --real $tiny/syn --materialize $out.npz": ["--format packed", "--image-size 4"],
    f"{PROBE} $tiny/f.safetensors": [
        "--test $tiny/syn", "--val digits:8:test", "--encoder $tiny/f1.safetensors", "--layer backbone",
        "--mode logistic", "--seeds 2", "--epochs 40", "--shots 9", "--fraction 0.5", "--k 1", "--k 20 --k 9",
        "--knn-temperature 9", "--image-size 4", "--seed 1", "--precision bf16", "--holdout 0.5",
    ],
    f"{PROBE} $tiny/vit.safetensors --layer backbone": ["--pool mean", "--pool cls+mean", "--blocks 2"],
    f"{PROBE} $tiny/f.safetensors --test a=digits:8:train": ["--train a=digits:8:train"],
    f"{PROBE} $tiny/f.safetensors --test a=$tiny/syn": ["--confusion $out.csv", "--predictions $out.csv"],
    f"{PROBE} $tiny/f.safetensors --mode sgd --epochs 3 --train-batch 32": [
        "--epochs 4", "--augment flip", "--augment none", "--train-batch 64", "--optimizer lars", "--lr 3",
        "--weight-decay 0.5", "--schedule steps", "--warmup-epochs 1", "--head batchnorm", "--layer backbone",
    ],
    f"{PROBE} $tiny/f.safetensors --mode sgd --epochs 3 --train-batch 32 --optimizer lars --lr 9": [
        "--lars-bias adapt",
    ],
    f"{PROBE} $tiny/f.safetensors --mode finetune --epochs 3 --warmup-epochs 0 --train-batch 32 --lr 0.01": [
        "--label-smoothing 0.9", "--layer-decay 1", "--augment none", "--layer backbone", "--shots 9", "--mixup 0.8",
        "--cutmix 1", "--rand-augment 9", "--erasing 0.9", "--ema 0.9",
    ],
    f"{PROBE} $tiny/f.safetensors --mode finetune --epochs 2 --warmup-epochs 0 --train-batch 32 --lr 0.01 --mixup 1 "
    "--cutmix 1": ["--mix-switch 1"],
    f"{PROBE} $tiny/vit.safetensors --layer backbone --mode finetune --epochs 2 --warmup-epochs 0 --train-batch 32": [
        "--drop-path 0.5",
    ],
    f"{SEGMENT} --steps 5 --warmup-steps 1 --crop-px 8 --train-batch 4": [
        "--steps 6", "--warmup-steps 2", "--crop-px 4", "--crop-px 4 --stride-px 2", "--train-batch 2", "--lr 0.1",
        "--weight-decay 9", "--seed 1", "--num-classes 5", "--reduce-zero-label --num-classes 2",
        "--test a=$tiny/images --test-masks a=$tiny/masks", "--train a=$tiny/images --train-masks a=$tiny/masks "
        "--test a=$tiny/images --test-masks a=$tiny/masks",
    ],
    f"{FID} $tiny/f.safetensors": [
        "--reference digits:8:train", "--samples $tiny/real.safetensors", "--extractor $tiny/f1.safetensors",
        "--layer projector", "--metrics kid", "--image-size 4", "--save-stats $out.npz",
    ],
    "fid --reference $tiny/z.safetensors --samples $tiny/z.safetensors -q --metrics fd-infinity": ["--seed 1"],
    "fid --reference $tiny/z.safetensors --samples $tiny/z1.safetensors -q --metrics cka": [
        "--metrics opd", "--bootstrap 9", "--seed 1",
    ],
    "captions --num 30 --quiet": [
        "--seed 1", "--concepts digits", "--backgrounds places", "--templates 1,0,0", "--num 31", "--shard 1/2",
        "--form words", "--max-words 10", "--json --num 3",
    ],
    "captions --num 30 --quiet --min-words 12": ["--min-words 3", "--retries 0"],
    "captions --num 30 --quiet --concepts digits --form words": ["--on-duplicate keep", "--form hypernym"],
    "show $tiny/real.safetensors --quiet --out $out.png": [
        "--columns 3", "--rows 2", "--image-size 4", "--features $tiny/z.safetensors",
        "--encoder $tiny/vit.safetensors",
    ],
    "show $tiny/syn --quiet --out $out.png": ["--real $tiny/real.safetensors"],
    "show $tiny/real.safetensors --quiet --out $out.png --features $tiny/z.safetensors": [
        "--features $tiny/z1.safetensors", "--real digits:8:train --real-features $tiny/other_rows.safetensors",
    ],
    "show $tiny/real.safetensors --quiet --out $out.png --encoder $tiny/vit.safetensors": [
        "--mass 0.6", "--picture pca",
    ],
    "show $tiny/z.safetensors --quiet --out $out.png": ["--embedding tsne"],
}  # fmt: skip
# Options that do not change what is computed, or have one value only.
ELSEWHERE = {
    "config", "preset", "json", "quiet", "force", "dry_run", "out", "data", "materialize",  # above
    "device", "nproc", "nnodes", "rdzv_endpoint", "on_bad",  # test_bad_input.py, tests/dist
    "log_every", "save_sec", "preview_every", "batch_size", "workers", "per_class",  # test_runtime_options
    "subset_logits", "corruptions", "labels",  # test_probe.py
    "cache",  # test_fid_cache.py
    "resize",  # of Inception: test_options_with_nothing_to_act_on_are_refused and tests/golden
    "splits",  # of Inception scores: test_fid_metrics.py
    "arch", "first_stage", "latent_scale",  # test_generator_families.py
    "images", "negative_prompt",  # test_pipelines.py
    "captions", "text_encoder", "caption_length",  # test_caption_generators.py and test_pipelines.py
    "ask_backgrounds", "examples", "backend", "model", "api", "temperature", "top_p", "top_k", "repetition_penalty",
    "max_tokens", "extensions", "url", "key_env", "concurrency", "timeout_sec", "tries", "write_requests", "ingest",
    "on_missing",  # test_captions_verb.py
    "set",  # of train-ssl and train-gen above; of pipelines in test_pipelines.py
    "ema_length", "ema_snapshots",  # test_an_average_of_any_length_is_sampled_after_training
    "compile",  # the same numbers, faster: tests/bench
    "export",  # test_interchange.py
    "export_diffusers",  # test_export_diffusers.py
    "view_px", "eval_resize",  # test_photographs.py
    "encode", "max_px",  # test_packed_photographs.py
    "paths", "parents",  # test_verify.py
    "shell",
}  # fmt: skip
# These act where there is something to act on; a verb without passes over them, as its page says.
IDLE = {
    "seed": {"extract", "show", "verify"},
    "precision": {"fid", "inflate", "show", "captions", "verify"},
    "force": {"verify"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_tried(verb: str) -> None:
    tried = {word for line, more in EFFECTS.items() if line.split()[0] == verb for o in more for word in o.split()}
    for name in cfg.described(options_of(verb).Config):
        flags = {cfg.flag(name), f"--no-{cfg.flag(name)[2:]}"}
        assert flags & tried or name in ELSEWHERE or verb in IDLE.get(name, ()), f"no test shows what {name} does"


@pytest.mark.parametrize("line", EFFECTS, ids=lambda line: f"{line.split()[0]} {line.split()[-1]}")
def test_every_option_has_an_effect(run: Run, tiny: Path, line: str) -> None:
    alone = made(run, tiny, line, "alone")
    for number, more in enumerate(EFFECTS[line]):
        assert made(run, tiny, f"{line} {more}", f"made{number}") != alone, f"{more} changes nothing"


def made(run: Run, tiny: Path, line: str, out: str) -> tuple[str, dict[str, object]]:
    """What a line prints, and the content of what it writes without the record of its own options."""
    ran = run(*words_of(line, tiny=tiny, out=out))
    assert ran.code == 0, (line, ran.err)
    files = [path for path in Path().glob(f"{out}*") if path.suffix != ".d"]
    return ran.out.replace(out, "OUT"), {path.name.replace(out, "OUT"): payload(path) for path in files}


def payload(path: Path) -> object:
    kind = sniff(path)
    if kind == "directory":
        return {
            str(file): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and file.suffix != ".json" and file.name != "SHA256SUMS"
        }
    if kind == "npz":
        with np.load(path) as arrays:
            return [(name, arrays[name].tobytes()) for name in arrays if name != "corecli"]
    if kind == "json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("identity", "config")}
    header = checkpoint.read_header(path) if kind == "safetensors" else None
    return path.read_bytes() if header is None else header["fingerprint"]


IDLE_LINES = [
    (f"{SSL} --views 3g", "simclr takes 2 global views, not 3"),
    (f"{SSL} --views 2g2l", "simclr takes no local views"),
    (f"{SSL} --views 2x", "views '2x' are malformed"),
    (f"{SSL} --views 2l", "views '2l' include no global view"),
    (f"{SSL} --views reel:1g,synthetic:1g", "did you mean 'real'"),
    (f"{SSL} --views real:1g,1g", "have an entry without a source"),
    (f"{SSL} --synthetic-probability 0.5", "--synthetic-probability needs mixed views"),
    (f"{SSL} --set temperatur=1", "did you mean 'temperature'"),
    (f"{SSL} --set temperature=warm", "temperature: 'warm' is not a valid float"),
    (f"{SSL} --set temperature=0", "the temperature must be above 0"),
    (f"{SSL} --set temperature", "--set 'temperature' has no value"),
    (f"{SSL} --export teacher", "simclr has no teacher to export"),
    (
        f"{SSL} --features $tiny/z.safetensors",
        "simclr does not use --features (use a method such as psl, or drop --features)",
    ),
    (f"{GEN} --feature-noise 0.1", "--feature-noise does not apply to a generator conditioned on nothing"),
    (f"{GEN} --condition labels --feature-normalization l2", "--feature-normalization does not apply"),
    (f"{GEN} --condition-dropout 0.1", "--condition-dropout does not apply to a generator conditioned on nothing"),
    ("sample --ckpt $tiny/unconditional.pt --rows 1 --out o", "--rows and --order need --features or --captions"),
    (
        "sample --ckpt $tiny/unconditional.pt --order shuffle --out o",
        "--rows and --order need --features or --captions",
    ),
    (f"{LINES['sample']} --num 3 --per-row 2", "--num and --per-row exclude each other (give one)"),
    (f"{LINES['sample']} --sampler ddpm --eta 0.5 -q", "the ddpm sampler takes no --eta"),
    (f"{LINES['sample']} --set noise_level=1", "unknown option of ddim 'noise_level'"),
    (f"{LINES['sample']} --captions x", "conditioned on features, not on captions (drop --captions)"),
    (f"{GEN} --text-encoder x", "--text-encoder does not apply to a generator conditioned on nothing"),
    (f"{LINES['inflate']} --format npz", "--format needs --materialize"),
    (
        f"{LINES['inflate']} --beta 0.5 --repeat 2",
        "--beta and --repeat both set how often real images appear (give one)",
    ),
    (f"{LINES['inflate']} --share 6/5", "--share '6/5' is not K/N (write 2/5 for the second of five parts)"),
    ("inflate --real $tiny/syn --materialize o --guard", "options of a mixture need --out FILE.json"),
    (
        "captions --model x",
        "--model does not apply to --backend grammar (it is an option of batch and server and transformers)",
    ),
    ("captions --temperature 0.1", "--temperature does not apply to --backend grammar"),
    ("captions --backend server --model x --form words", "--form does not apply to --backend server"),
    ("captions --backend server", "--backend server needs --model"),
    ("captions --backend batch --model x", "--backend batch needs --out (it keeps the answers"),
    ("captions --shard 4/4", "--shard '4/4' is not I/N with I below N (the shards of 16 are 0/16 to 15/16)"),
    ("captions --templates 1,0", "--templates needs three probabilities"),
    ("captions --ask-backgrounds", "--ask-backgrounds needs a language model and --backgrounds FILE.json"),
    ("captions --concepts everyday:0", "no list of concepts has a weight above 0"),
    ("captions --concepts everyday:1:thing", "unknown kind of concepts 'thing'"),
    ("probe --train $tiny/z.safetensors --test $tiny/z.safetensors --encoder $tiny/f.safetensors", "drop --encoder"),
    (f"{LINES['probe']} --lr 1", "--lr does not apply to --mode sweep (it is an option of finetune, segment, sgd)"),
    (f"{LINES['probe']} --mode sgd --k 5", "--k does not apply to --mode sgd (it is an option of logistic, sweep)"),
    (
        f"{LINES['probe']} --mode sgd --lars-bias adapt",
        "--lars-bias does not apply (it is an option of --optimizer lars)",
    ),
    (
        f"{LINES['probe']} --mode sgd --val digits:8",
        "--val does not apply to --mode sgd (this mode chooses no setting)",
    ),
    (f"{LINES['probe']} --mode finetune --epochs 2", "a warm-up of 20 epochs is not shorter than training, 2 epochs"),
    ("probe --train $tiny/z.safetensors --test $tiny/z.safetensors --mode sgd", "--augment crop needs images"),
    ("probe --train $tiny/z.safetensors --test $tiny/z.safetensors --mode finetune", "--mode finetune needs images"),
    ("fid --reference $tiny/z.safetensors --samples $tiny/z.safetensors --extractor x", "--extractor is for images"),
    (f"{FID} $tiny/f.safetensors --resize clean", "--resize is for Inception weights"),
    (f"{FID} $tiny/f.safetensors --precision bf16", "distances are measured in float32"),
]


@pytest.mark.parametrize(("line", "message"), IDLE_LINES)
def test_options_with_nothing_to_act_on_are_refused(run: Run, tiny: Path, line: str, message: str) -> None:
    ran = run(*words_of(line, tiny=tiny, out="o"))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train-ssl --label-by class", "--label-by is an option of stablerep, synclr (write --set label-by=VALUE)"),
        ("train-gen --channels 32", "--channels is an option of adm, autoencoder, icgan, ldm (write --set channels="),
        ("train-ssl --augmet weak", "No such option: --augmet (Possible options: --augment"),
        ("train-ssl --lr", "Option '--lr' requires an argument"),
        ("probe --channels 32", "No such option: --channels"),
    ],
)
def test_an_unknown_option_suggests_another(run: Run, line: str, message: str) -> None:
    ran = run(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_runtime_options(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from corecli.data import loader
    from corecli.nets.encoder import Encoder

    seen: list[Any] = []
    encode, read = Encoder.encode, loader.fill_by_workers
    monkeypatch.setattr(Encoder, "encode", lambda self, x, *more: seen.append(len(x)) or encode(self, x, *more))
    monkeypatch.setattr(loader, "fill_by_workers", lambda *a, **k: seen.append(k["num_workers"]) or read(*a, **k))
    extract = f"extract --encoder {tiny}/f.safetensors -q --out"
    assert run(*f"{extract} a --data {tiny}/real.safetensors --batch-size 200".split()).code == 0
    assert run(*f"{extract} b --data {tiny}/syn --workers 0".split()).code == 0
    assert run(*f"{extract} c --data {tiny}/syn --workers 2".split()).code == 0
    assert seen == [200, 155, 6, 2, 6]
    probe = f"probe --train {tiny}/z.safetensors --test {tiny}/z.safetensors --epochs 1 --seeds 1".split()
    assert run(*probe, "--per-class").out.count("class ") == 10
    assert "class " not in run(*probe).out


def test_an_average_of_any_length_is_sampled_after_training(run: Run, tiny: Path) -> None:
    line = words_of(f"{GEN} --steps 6 --lr 0.02 --ema power --ema-snapshots 3", tiny=tiny, out="g")
    assert run(*line).code == 0
    assert len(list(Path("g.safetensors.d/averages").iterdir())) == 3
    sampled = ("sample", "--ckpt", "g.safetensors", "--num", "3", "--steps", "2", "-q")
    for length in ("0.05", "0.2"):
        assert run(*sampled, "--ema-length", length, "--out", f"s{length}.npz").code == 0
    assert payload(Path("s0.05.npz")) != payload(Path("s0.2.npz"))
    ran = run(
        "sample", "--ckpt", tiny / "g.pt", "--features", tiny / "z.safetensors", "--ema-length", "0.1", "--out", "o"
    )
    assert ran.code == 65
    assert ": no snapshots of averages" in ran.err


def test_several_guidances_write_one_set_each(run: Run, tiny: Path) -> None:
    line = ("sample", "--ckpt", tiny / "g.pt", "--features", tiny / "z.safetensors", "--rows", "0,5", "--steps", "1")
    ran = run(*line, "--guidance", "1,2.5", "--out", "syn.npz", "-q")
    assert (ran.code, ran.out.splitlines()) == (0, ["syn-g1.npz", "syn-g2.5.npz"])
    alone = run(*line, "--guidance", "2.5", "--out", "alone.npz", "-q")
    assert alone.code == 0
    assert payload(Path("alone.npz")) == payload(Path("syn-g2.5.npz")) != payload(Path("syn-g1.npz"))


def test_saved_states_and_previews(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, *a, **k: saved.append(path.name) or save(path, *a, **k))
    line = words_of(f"{GEN} --steps 4 --preview-every 2", out="g")
    assert run(*line, "--save-sec", "0").code == 0
    assert saved == [
        "state-000000001.safetensors",
        "state-000000002.safetensors",
        "state-000000003.safetensors",
        "g.safetensors",
    ]
    assert sorted(p.name for p in Path("g.safetensors.d/previews").iterdir()) == [
        "step-0000002.png",
        "step-0000004.png",
    ]
    saved.clear()
    assert run(*line, "--force", "--preview-every", "0").code == 0
    assert saved == ["g.safetensors"]
    assert not Path("g.safetensors.d/previews").exists()
