"""Make images with a trained generator.

A feature-conditioned generator makes --per-row images for each row of --features; the image of row `dog/0007` and
variant 2 has the key `dog/0007@2` and the group `dog/0007`, so real and synthetic images stay together. Its noise is a
function of the seed, the key and the variant: the same image whatever the batch size, the number of processes, the
rows chosen and the point a killed run resumed from. A table of another encoder than the generator was trained on is
refused (--force accepts it).

--num N makes N images in all, going through the rows in --order as often as it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.config import Common, Preset, option
from corecli.base.errors import DataError, UsageError
from corecli.base.outcome import Outcome, produced
from corecli.base.rng import derive, numpy_generator
from corecli.base.target import is_finished
from corecli.commands import _inputs
from corecli.data.rows import SYNTHETIC, Rows, make_rows, variant_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.data.features import FeatureTable
    from corecli.engine.dist import World

EXAMPLES = (
    ("One image a row, into samples/", "--ckpt g.pt --features z.safetensors"),
    (
        "CORE's 100K images of CIFAR-10",
        "--ckpt g.pt --features z.safetensors --per-row 2 --sampler ddim --steps 50 --out syn.safetensors",
    ),
    ("From an unconditional generator", "--ckpt g0.pt --num 1024 --out syn"),
)
PRESETS: dict[str, Preset] = {
    "core-cifar": {"sampler": "ddim", "steps": 50, "eta": 0.0, "per_row": 2},  # CORE C.2: DDIM 50, the set twice
}
SHARD_ROWS = 256
DEFAULT_NUM = 64


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli sample`."""

    ckpt: Path = option(help="generator file", role="input", metavar="FILE")
    features: Path | None = option(None, help="feature table to condition on", role="input", metavar="FILE")
    out: Path = option(
        Path("samples"),
        help="image set to write: .safetensors, .npz, .tar, else a directory",
        role="output",
        metavar="PATH",
    )
    format: Literal["directory", "packed", "tar", "npz"] | None = option(
        None, help="format of --out, whatever its name", role="runtime"
    )
    per_row: int | None = option(None, help="images a row, or a class (default 1)", minimum=1)
    num: int | None = option(None, help="images in all (default without rows: 64)", minimum=1)
    order: Literal["table", "shuffle", "class-balanced"] = option(
        "table",
        help="order of rows for --num: as in the table, shuffled, or class by class in turn",
    )
    rows: str | None = option(None, help="rows to use: START:STOP:STEP, or numbers such as 0,5,9", metavar="ROWS")
    sampler: str = option("ddim", help="how to sample", choices=lambda: registry.choices("diffusion/samplers"))
    steps: int | None = option(None, help="denoising steps (default: the sampler's; ddim 50)", minimum=1)
    eta: float = option(0.0, help="randomness of ddim: 0 none, 1 as ddpm", minimum=0, maximum=1)
    spacing: Literal["even", "inclusive", "log-snr", "karras"] | None = option(
        None, help="which noise levels the steps visit; default the sampler's or the objective's"
    )
    guidance: tuple[float, ...] = option(
        (1.0,), help="classifier-free guidance, 1 for none; several, such as 2,3,8, write one set each", minimum=0
    )
    guidance_interval: tuple[float, ...] | None = option(
        None, help="guide at noise levels sigma / alpha above LOW and up to HIGH alone", metavar="LOW,HIGH"
    )
    ema_length: float | None = option(
        None, help="length of the average of the weights, of a run with --ema power, from its snapshots", minimum=0
    )
    batch_size: int = option(64, help="images at once", role="runtime", minimum=1)


def check(config: Config) -> dict[str, Any]:
    """What would be written. Errors: as `run`, as far as they show without torch."""
    header = _inputs.check_header(config.ckpt, "generator")
    if config.features is not None:
        _check_table(config, header, _inputs.check_header(config.features, "features"))
    if config.num is not None and config.per_row is not None:
        raise UsageError("--num and --per-row are two ways to say how many", hint="give one")
    kind = header["condition"]["kind"]
    if kind == "features" and config.features is None:
        raise UsageError("the generator is conditioned on features", where=config.ckpt, hint="give --features")
    if config.features is None and (config.rows is not None or config.order != "table"):
        raise UsageError("--rows and --order need --features")
    _check_sampling(config, header)
    _check_guidance(config, header)
    return {"conditioned_on": kind, "writes": [str(one.out) for one in _sweep(config)]}


def run(config: Config, world: World) -> Outcome:
    """Sample and publish the set, or one for each guidance. Errors: DataError, UsageError, CannotCreateError."""
    made = [_make_set(one, world) for one in _sweep(config)]
    return Outcome(
        lines=tuple(line for outcome in made for line in outcome.lines),
        records=tuple(record for outcome in made for record in outcome.records),
        notes=tuple(note for outcome in made for note in outcome.notes),
    )


def _sweep(config: Config) -> list[Config]:
    """The config for each guidance; with several, syn.tar becomes syn-g2.tar and syn-g3.tar."""
    if len(config.guidance) == 1:
        return [config]
    outs = [config.out.with_name(f"{config.out.stem}-g{scale:g}{config.out.suffix}") for scale in config.guidance]
    return [replace(config, guidance=(scale,), out=out) for scale, out in zip(config.guidance, outs, strict=True)]


def _make_set(config: Config, world: World) -> Outcome:
    """Sample, shard by shard, and publish the set."""
    from corecli.base import checkpoint
    from corecli.data.imageset import write_set
    from corecli.engine.precision import autocast, place
    from corecli.engine.run import clear_work, open_folder
    from corecli.engine.shards import Shards

    tensors, header = checkpoint.load(config.ckpt, kind="generator")
    table = _inputs.load_table(config.features)
    inputs = {"ckpt": header["fingerprint"], "features": table.header["fingerprint"] if table else None}
    identity = cfg.identity(config, inputs)
    plan = _plan(config, header, table)
    if is_finished(config.out, identity, force=config.force):
        clear_work(config.out)
        return produced(config.out, notes=("already there, left alone",), num=len(plan.rows))
    generator = place(_build(header, tensors | _averages(config)), world.device)
    guidance = config.guidance[0]
    generator.check_condition(plan.condition, guidance=guidance)
    interval = _interval(config)
    folder = open_folder(config.out, identity, world, force=config.force)

    def make(batches: Iterator[tuple[int, int]]) -> Iterator[dict[str, torch.Tensor]]:
        for start, stop in batches:
            condition = None if plan.condition is None else plan.condition[plan.source[start:stop]].to(world.device)
            with autocast(config.precision, world.device):
                images = generator.generate(
                    plan.seeds(config.seed, start, stop),
                    condition,
                    sampler=config.sampler,
                    steps=config.steps,
                    eta=config.eta,
                    guidance=guidance,
                    guidance_interval=interval,
                    spacing=config.spacing,
                )
            yield {"images": images}

    with Shards(folder, num_rows=len(plan.rows), shard_size=SHARD_ROWS, world=world) as shards:
        shards.compute(make, label="sample", batch_size=config.batch_size, quiet=config.quiet)
        if world.is_main:
            provenance = {"config": cfg.settings(config), "identity": identity, "parents": inputs}
            chunks = (shard["images"] for shard in shards.read())
            class_names = tuple(header["class_names"])
            write_set(config.out, plan.rows, chunks, class_names=class_names, header=provenance, format=config.format)
    return produced(config.out, num=len(plan.rows), sampler=config.sampler, guidance=guidance)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which images are to be made: their rows, and the row of `condition` each is made from."""

    rows: Rows
    source: np.ndarray
    condition: torch.Tensor | None

    def seeds(self, seed: int, start: int, stop: int) -> list[int]:
        """The noise seeds of some images: functions of (seed, key), and the key ends in the variant."""
        return [derive(seed, "noise", key) for key in self.rows.keys[start:stop]]


def _plan(config: Config, header: dict[str, Any], table: FeatureTable | None) -> Plan:
    """The images asked for. Errors: UsageError, DataError."""
    import torch

    kind = header["condition"]["kind"]
    if table is not None:
        _check_table(config, header, table.header)
        rows = make_rows(table.keys, groups=table.groups, labels=table.labels)
        return _repeat(config, rows, table.features)
    if kind == "labels":
        names = header["class_names"]
        rows = make_rows([f"{name}/{name}" for name in names], labels=np.arange(len(names)))
        return _repeat(config, rows, torch.arange(len(names)))
    num = config.num or config.per_row or DEFAULT_NUM
    rows = make_rows([f"{i:06d}" for i in range(num)], origins=SYNTHETIC)
    return Plan(rows=rows, source=np.zeros(num, dtype=np.int64), condition=None)


def _repeat(config: Config, rows: Rows, condition: torch.Tensor) -> Plan:
    """`num` images, or `per_row` of each chosen row: image i is variant i // R of the i-th of R rows, modulo R."""
    chosen = _ordered(config, rows, _selected(config.rows, len(rows)))
    num = config.num if config.num is not None else len(chosen) * (config.per_row or 1)
    source = chosen[np.arange(num) % len(chosen)]
    variants = np.arange(num) // len(chosen)
    groups = [rows.groups[i] for i in source]
    keys = [variant_key(rows.keys[i], v) for i, v in zip(source.tolist(), variants.tolist(), strict=True)]
    made = make_rows(keys, groups=groups, labels=rows.labels[source], origins=SYNTHETIC, variants=variants)
    return Plan(rows=made, source=source, condition=condition)


def _selected(text: str | None, num_rows: int) -> np.ndarray:
    """The row numbers that --rows names. Errors: UsageError."""
    everything = np.arange(num_rows)
    if text is None:
        return everything
    try:
        if ":" in text:
            chosen = everything[slice(*(int(part) if part else None for part in text.split(":")))]
        else:
            chosen = everything[[int(part) for part in text.split(",")]]
    except (ValueError, IndexError, TypeError) as error:
        raise UsageError(f"--rows {text!r} names no rows of {num_rows}", hint="write 0:100, ::10 or 0,5,9") from error
    if not len(chosen):
        raise UsageError(f"--rows {text!r} names no rows of {num_rows}")
    return chosen


def _ordered(config: Config, rows: Rows, chosen: np.ndarray) -> np.ndarray:
    if config.order == "table":
        return chosen
    shuffled = numpy_generator(config.seed, "rows").permutation(chosen)
    if config.order == "shuffle":
        return shuffled
    labels = rows.labels[shuffled]
    if (labels < 0).any():
        raise DataError("rows without labels", where=config.features, hint="class-balanced order needs them")
    turn = np.zeros(len(shuffled), dtype=np.int64)  # the how-many-eth of its class each row is
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return shuffled[np.lexsort((labels, turn))]


def _check_table(config: Config, generator: dict[str, Any], table: dict[str, Any]) -> None:
    """A table fits a generator when it is of the encoder and layer it was trained on."""
    told = generator["condition"]
    if told["kind"] != "features":
        reason = f"the generator is conditioned on {told['kind'].replace('none', 'nothing')}, not on features"
        raise UsageError(reason, where=config.ckpt, hint="drop --features")
    if config.force:
        return
    for name in ("encoder", "layer"):
        if told[name] != table[name]:
            reason = f"features of {name} {table[name][:12]}, the generator was trained on {told[name][:12]}"
            hint = "extract with the encoder and layer it was trained on; --force accepts it"
            raise DataError(reason, where=config.features, hint=hint)


def _interval(config: Config) -> tuple[float, float] | None:
    """Errors: UsageError unless --guidance-interval is of two numbers."""
    if config.guidance_interval is None:
        return None
    if len(config.guidance_interval) != 2:
        raise UsageError("--guidance-interval is of two noise levels", hint="write 0.19,1.61")
    return config.guidance_interval


def _check_guidance(config: Config, generator: dict[str, Any]) -> None:
    """Guidance extrapolates from the generator without condition, which only condition dropout teaches it."""
    _interval(config)
    if set(config.guidance) == {1}:
        return
    if generator["condition"]["kind"] == "none":
        raise UsageError("the generator is unconditional, nothing guides it", where=config.ckpt, hint="drop --guidance")
    if not generator["generator"].get("condition_dropout"):
        hint = "drop --guidance, or train with --condition-dropout above 0"
        raise UsageError("the generator was trained without condition dropout", where=config.ckpt, hint=hint)


def _check_sampling(config: Config, generator: dict[str, Any]) -> None:
    """A family that makes an image in one pass has nothing to choose."""
    if not registry.constants("generators", generator["arch"]).get("ONE_PASS"):
        return
    options = cfg.described(Config)
    for name in ("sampler", "steps", "eta", "spacing", "guidance", "guidance_interval"):
        if getattr(config, name) != options[name][0].default:
            reason = f"{cfg.flag(name)} does not apply to {generator['arch']}, which makes an image in one pass"
            raise UsageError(reason, where=config.ckpt)


def _averages(config: Config) -> dict[str, torch.Tensor]:
    """The weights whose average is of the length asked for, by name; none for the published average."""
    if config.ema_length is None:
        return {}
    from corecli.engine.power_ema import reconstruct
    from corecli.engine.run import folder_of

    return reconstruct(folder_of(config.ckpt) / "averages", config.ema_length).tensors


def _build(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    family = registry.load("generators", header["arch"])
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in header["generator"].items()}
    generator = family.build(family.Config(**fields))
    generator.load_state_dict(tensors)
    return generator.eval()
