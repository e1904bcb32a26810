"""The lines of the soak: what every verb writes, on small inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from language_server import LanguageServer, say

from corecli.cli.app import run_line
from corecli.data.imageset import write_set
from corecli.data.rows import make_rows

TINY = ("--projector-hidden", 16, "--projector-dim", 8)
NET = ("--backbone", "resnet10-tiny", *TINY, "--batch-size", 16, "--optimizer", "adamw", "--lr", "1e-3")
UNET = ("--set", "channels=8", "--set", "channel_mult=1,2", "--set", "head_channels=8", "--set", "num_res_blocks=1")
SAVING = ("--save-sec", 0, "--log-every", 2)
DIGITS = "digits:8:test"
PER_LINE = 24  # kills


@dataclass(frozen=True)
class Soaked:
    """Command lines that run at once, whose words with `OUT` are paths in the folder under test."""

    lines: Sequence[Sequence[object]]
    kills: int = PER_LINE
    processes: int = 1

    @property
    def verb(self) -> str:
        return str(self.lines[0][0])

    def argvs(self, folder: Path) -> list[list[str]]:
        return [[str(word).replace("OUT", str(folder)) for word in line] for line in self.lines]


@dataclass(frozen=True)
class Inputs:
    """Files that the lines read."""

    folder: Path
    server: LanguageServer = field(default_factory=LanguageServer)

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def make_images(folder: Path) -> Inputs:
    """Make a directory of images, which some of the lines need only."""
    images = np.random.default_rng(0).integers(0, 256, (96, 3, 8, 8), dtype=np.uint8)
    rows = make_rows([f"{i % 4}/{i:03d}" for i in range(96)], labels=np.arange(96) % 4)
    write_set(folder / "pngs", rows, [images], class_names=tuple("0123"), header={})
    return Inputs(folder)


def make_inputs(folder: Path) -> Inputs:
    """Make a small file of every kind that a verb reads."""
    inputs, digits, few = make_images(folder), ("--data", DIGITS), ("--steps", 2)
    made = (
        ("train-ssl", *digits, *NET, *few, "--out", inputs.encoder),
        ("train-ssl", *digits, "--backbone", "vit-micro/4", *TINY, "--batch-size", 16, *few, "--out", inputs.vit),
        ("extract", *digits, "--encoder", inputs.encoder, "--layer", "projector", "--out", inputs.table),
        ("train-gen", *digits, *UNET, "--features", inputs.table, "--batch-size", 16, *few, "--out", inputs.unet),
        ("train-gen", *digits, "--arch", "autoencoder", *UNET[:4], "--batch-size", 16, *few, "--out", inputs.stage),
        ("inflate", "--real", DIGITS, "--synthetic", folder / "pngs", "--out", folder / "mix.json"),
        ("captions", "--num", 40, "--out", folder / "captions.jsonl"),
        (*batch_of(folder), "--write-requests", folder / "requests.jsonl", "--out", folder / "unused.jsonl"),
    )
    for line in made:
        assert run_line([*map(str, line), "--device", "cpu", "-q"]) == 0, line
    requests = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    (folder / "answers.jsonl").write_text("\n".join(_answered(request) for request in requests))
    return inputs


def batch_of(folder: Path) -> Sequence[object]:
    return ("captions", "--backend", "batch", "--model", "m", "--num", 60, "--on-missing", "warn", "--retries", 0)


def _answered(request: dict[str, object]) -> str:
    text, reason = say(request["body"])  # type: ignore[arg-type]
    choice = {"text": text, "finish_reason": reason}
    return json.dumps({"custom_id": request["custom_id"], "response": {"body": {"choices": [choice]}}})


def soaked(inputs: Inputs) -> dict[str, Soaked]:
    """Return the lines by name."""
    folder = inputs.folder
    many = {
        **_reading(inputs),
        **_ssl(folder, inputs),
        **_generators(inputs),
        **_sampled(inputs),
        **_mixed(folder),
        **_captioned(folder, inputs.server.url),
    }
    return {name: _with_device(work) for name, work in many.items()}


NAMES = (
    *("extract", "extract of images", "extract in two processes"),
    *("probe", "probe of images", "fid", "fid with a cache"),
    *("show a sheet", "show curves", "show attention"),
    *("simclr", "moco", "byol", "dino", "stages", "mixture", "data workers", "train-ssl in two processes"),
    *("adm", "dit", "ldm", "icgan", "autoencoder", "exported folder"),
    *("directory", "packed", "npz", "tar", "tar shards", "four jobs", "guidances", "sample in two processes"),
    *("mixture file", "materialized directory", "materialized packed", "materialized npz", "materialized tar"),
    *("grammar", "server", "batch", "requests"),
)


def _with_device(work: Soaked) -> Soaked:
    lines = [[*line, "--device", "cpu", "-q"] for line in work.lines]
    return Soaked(lines, kills=work.kills, processes=work.processes)


def _reading(inputs: Inputs) -> dict[str, Soaked]:
    digits, encoder, pngs = ("--data", DIGITS), ("--encoder", inputs.encoder), inputs.folder / "pngs"
    extract = ("extract", *digits, *encoder, "--batch-size", 16, "--out", "OUT/z.safetensors")
    sides = (
        "--reference",
        DIGITS,
        "--samples",
        pngs,
        "--extractor",
        inputs.encoder,
        "--metrics",
        "fd,kid,precision-recall",
    )
    probe = ("probe", "--confusion", "OUT/confusion.csv", "--train", pngs, "--test", pngs, *encoder, "--seeds", 2)
    return {
        "extract": Soaked([extract], kills=40),
        "extract of images": Soaked(
            [("extract", "--data", pngs, *encoder, "--batch-size", 8, "--workers", 2, "--out", "OUT/z.safetensors")]
        ),
        "extract in two processes": Soaked([(*extract, "--nproc", 2)], kills=8, processes=2),
        "probe": Soaked([probe], kills=30),
        "probe of images": Soaked([(*probe, "--mode", "sgd", "--epochs", 2, "--train-batch", 32)], kills=30),
        "fid": Soaked([("fid", *sides, "--save-stats", "OUT/stats.npz")], kills=30),
        "fid with a cache": Soaked([("fid", *sides, "--cache", "OUT/cache")], kills=30),
        "show a sheet": Soaked([("show", pngs, "--out", "OUT/sheet.png")]),
        "show curves": Soaked([("show", f"{inputs.unet}.d", "--out", "OUT/curves.png")]),
        "show attention": Soaked([("show", DIGITS, "--encoder", inputs.vit, "--out", "OUT/attention.png")]),
    }


def _ssl(folder: Path, inputs: Inputs) -> dict[str, Soaked]:
    def line(*words: object, data: object = DIGITS, steps: tuple[object, ...] = ("--steps", 8)) -> Soaked:
        return Soaked([("train-ssl", "--data", data, *NET, *SAVING, *steps, *words, "--out", "OUT/f.safetensors")])

    stages = ("--features", inputs.table, "--stage", "psl:4", "--stage", "simclr:5")
    return {
        "simclr": line("--method", "simclr"),
        "moco": line("--method", "moco", "--set", "queue_size=35"),
        "byol": line("--method", "byol"),
        "dino": line("--method", "dino", "--set", "prototypes=16"),
        "stages": line(*stages, steps=()),
        "mixture": line("--views", "real:1g,mixed:1g", data=folder / "mix.json"),
        "data workers": line("--workers", 2, data=folder / "pngs"),
        "train-ssl in two processes": Soaked([*line("--nproc", 2, steps=("--steps", 6)).lines], kills=10, processes=2),
    }


def _generators(inputs: Inputs) -> dict[str, Soaked]:
    def line(arch: str, *words: object, features: bool = True) -> Soaked:
        table = ("--features", inputs.table) if features else ()
        steps = ("--steps", 6, "--batch-size", 16, "--preview-every", 4)
        out = ("--out", "OUT/g.safetensors")
        return Soaked([("train-gen", "--data", DIGITS, "--arch", arch, *table, *words, *SAVING, *steps, *out)])

    gan = [("--set", f"{name}") for name in ("channels=8", "channel_mult=2,2", "discriminator_mult=2,2", "z_dim=8")]
    gan += [("--set", f"{name}") for name in ("condition_width=16", "attention_px=4", "neighbours=5", "ema_start=3")]
    latent = ("--first-stage", inputs.stage, *UNET, "--set", "attention_resolutions=2", "--set", "context_dim=8")
    return {
        "adm": line("adm", *UNET),
        "dit": line("dit", "--set", "size=tiny", "--set", "patch=4"),
        "ldm": line("ldm", *latent),
        "icgan": line("icgan", *(word for pair in gan for word in pair)),
        "autoencoder": line("autoencoder", *UNET[:4], features=False),
        "exported folder": line("adm", *UNET, "--export-diffusers", "OUT/folder", features=False),
    }


def _sampled(inputs: Inputs) -> dict[str, Soaked]:
    def line(*words: object) -> tuple[object, ...]:
        return ("sample", "--ckpt", inputs.unet, "--features", inputs.table, "--steps", 1, *words)

    shards = [line("--shard", f"{i}/4", "--out", "OUT/set") for i in range(4)]
    return {
        "directory": Soaked([line("--out", "OUT/set")]),
        "packed": Soaked([line("--out", "OUT/set.safetensors")]),
        "npz": Soaked([line("--out", "OUT/set.npz")]),
        "tar": Soaked([line("--out", "OUT/set.tar")]),
        "tar shards": Soaked([line("--shards", 4, "--out", "OUT/set")]),
        "four jobs": Soaked(shards, kills=40),
        "guidances": Soaked([line("--guidance", "1,2", "--rows", "0:64", "--out", "OUT/set")]),
        "sample in two processes": Soaked([line("--nproc", 2, "--out", "OUT/set")], kills=10, processes=2),
    }


def _mixed(folder: Path) -> dict[str, Soaked]:
    mixture = ("inflate", "--real", DIGITS, "--synthetic", folder / "pngs", "--repeat", 2, "--out", "OUT/mix.json")
    written = ("inflate", "--real", DIGITS, "--materialize")
    return {
        "mixture file": Soaked([mixture]),
        "materialized directory": Soaked([(*mixture, "--materialize", "OUT/set")], kills=40),
        "materialized packed": Soaked([(*written, "OUT/set.safetensors")]),
        "materialized npz": Soaked([(*written, "OUT/set.npz")]),
        "materialized tar": Soaked([(*written, "OUT/set.tar")]),
    }


def _captioned(folder: Path, url: str) -> dict[str, Soaked]:
    server = ("captions", "--backend", "server", "--model", "m", "--url", url, "--concurrency", 4)
    out = ("--out", "OUT/captions.jsonl")
    return {
        "grammar": Soaked([("captions", "--num", 300, *out)]),
        "server": Soaked([(*server, "--num", 80, *out)], kills=40),
        "batch": Soaked([(*batch_of(folder), "--ingest", folder / "answers.jsonl", *out)]),
        "requests": Soaked([(*batch_of(folder), "--write-requests", "OUT/requests.jsonl", *out)]),
    }
