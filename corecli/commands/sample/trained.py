"""Sampling from a generator of `train-gen`: what it is conditioned on, and what of a line applies to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import DataError, MissingInputError, UnavailableError, UsageError, about
from corecli.base.files import sha256_file
from corecli.commands.parts.captioned import Reader as captioned_Reader
from corecli.commands.parts.captioned import check_encoder
from corecli.commands.parts.inputs import check_generator, check_header, load_table
from corecli.commands.sample.plan import from_nothing, from_rows
from corecli.commands.sample.sampler import default_sampler, sampler_options
from corecli.data.captions import read_captions
from corecli.data.rows import make_rows
from corecli.nets.weights import pipelines
from corecli.nets.weights.text_encoders import find_text_encoder, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from corecli.commands.parts.captioned import Reader
    from corecli.commands.sample.options import Config
    from corecli.commands.sample.plan import Plan
    from corecli.engine.dist import World

_OF_PIPELINES = ("images", "negative_prompt")
_OF_STEPS = ("sampler", "steps", "eta", "spacing", "set", "guidance", "guidance_interval")


def check(config: Config) -> str:
    """What the generator is conditioned on. Errors: as of sampling, as far as they show without torch."""
    header = check_generator(config.ckpt_path)
    for name in _OF_PIPELINES:
        if getattr(config, name):
            raise UsageError(f"{cfg.flag(name)} is for pipelines of diffusers", where=config.ckpt)
    if config.features is not None:
        _check_table(config, header, check_header(config.features, "features"))
    kind = header["condition"]["kind"]
    if kind in ("features", "captions") and getattr(config, kind) is None:
        raise UsageError(f"the generator is conditioned on {kind}", where=config.ckpt, hint=f"give --{kind}")
    _check_captions(config, header)
    if config.features is None and config.captions is None and (config.rows is not None or config.order != "table"):
        raise UsageError("--rows and --order need --features or --captions")
    _check_sampling(config, header)
    _check_guidance(config, header)
    return kind


class Trained:
    """A generator file and the table it is conditioned on. Errors: DataError, UsageError."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._tensors, self._header = _load(config.ckpt_path)
        table = load_table(config.features)
        self.class_names = tuple(self._header["class_names"])
        self.inputs = {"ckpt": self._header["fingerprint"], "features": table.header["fingerprint"] if table else None}
        self._condition: torch.Tensor | None = None
        self._texts: list[str] = []
        self._text_encoder: Path | None = None
        self.table, self.plan = table, self._planned(table)

    def prepare(self, world: World) -> _Ready:
        """The generator on its device, its condition and guidance checked. Errors: DataError, UsageError."""
        from corecli.engine.precision import place

        generator = place(_build(self._header, self._tensors | _averages(self._config)), world.device)
        reader = self._reader(world) if self._texts else None
        told = reader.encode(generator, self._texts[:1]) if reader else self._condition
        generator.check_condition(told, guidance=_guidance(self._config))
        ready = _Ready(self._config, generator, self.plan, self._condition, world.device)
        if reader is not None:
            ready.read(self._texts, reader)
        return ready

    def _reader(self, world: World) -> Reader:
        """What reads captions as in training. Errors: DataError."""
        length = self._header["generator"]["caption_length"]
        return captioned_Reader(self._text_encoder, length=length, device=world.device)

    def _planned(self, table: Any) -> Plan:
        import torch

        if table is not None:
            _check_table(self._config, self._header, table.header)
            self._condition = table.features
            return from_rows(self._config, make_rows(table.keys, groups=table.groups, labels=table.labels))
        if self._config.captions is not None:
            self._text_encoder = _text_encoder(self._config, self._header)
            if self._text_encoder is not None:
                self.inputs["text_encoder"] = fingerprint(self._text_encoder)
            captions = read_captions(self._config.captions)
            self._texts, self.inputs["captions"] = captions.texts, sha256_file(self._config.captions)
            rows, self.class_names = captions.rows(self._config.captions)
            return from_rows(self._config, rows)
        if self._header["condition"]["kind"] == "labels":
            names = self.class_names
            self._condition = torch.arange(len(names))
            rows = make_rows([f"{name}/{name}" for name in names], labels=np.arange(len(names)))
            return from_rows(self._config, rows)
        return from_nothing(self._config)


class _Ready:
    notes: tuple[str, ...] = ()

    def __init__(
        self, config: Config, generator: Any, plan: Plan, condition: torch.Tensor | None, device: torch.device
    ) -> None:
        self._config, self._generator, self._plan = config, generator, plan
        self._condition, self._device = condition, device
        self._texts: list[str] = []
        objective = getattr(generator.config, "objective", None)
        self.sampler = config.sampler or (default_sampler(objective) if objective else None)
        self._options = sampler_options(self.sampler, config.set, config.eta) if self.sampler else {}

    def read(self, texts: list[str], reader: Reader) -> None:
        """Make images from captions, read when their turn comes."""
        self._texts, self._reader = texts, reader
        self.notes = reader.cut([texts[i] for i in sorted(set(self._plan.source.tolist()))])

    def _told(self, start: int, stop: int) -> torch.Tensor | None:
        """The condition of rows of the plan."""
        rows = self._plan.source[start:stop]
        if self._texts:
            return self._reader.encode(self._generator, [self._texts[i] for i in rows])
        return None if self._condition is None else self._condition[rows]

    def make(self, batches: Iterator[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """The images of batches of (start, stop) rows of the plan, uint8 [B, 3, S, S]."""
        from corecli.engine.precision import autocast

        config = self._config
        for start, stop in batches:
            told = self._told(start, stop)
            condition = None if told is None else told.to(self._device)
            with about(config.ckpt), autocast(config.precision, self._device):
                made = self._generator.generate(
                    self._plan.seeds(config.seed, start, stop),
                    condition,
                    sampler=config.sampler,
                    steps=config.steps,
                    guidance=_guidance(config),
                    guidance_interval=_interval(config),
                    spacing=config.spacing,
                    sampler_options=self._options,
                )
            yield made


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


def _check_captions(config: Config, generator: dict[str, Any]) -> None:
    """Errors: UsageError where captions, or a text encoder, mean nothing to the generator; as `read_captions`."""
    told = generator["condition"]
    if config.captions is not None and told["kind"] != "captions":
        reason = f"the generator is conditioned on {told['kind'].replace('none', 'nothing')}, not on captions"
        raise UsageError(reason, where=config.ckpt, hint="drop --captions")
    if config.text_encoder is not None and told.get("text_encoder") is None:
        hint = "drop --text-encoder"
        raise UsageError("the generator was trained with no frozen text encoder", where=config.ckpt, hint=hint)
    if config.captions is not None:
        read_captions(config.captions).rows(config.captions)
        check_encoder(config.text_encoder or told["text_encoder"])


def _text_encoder(config: Config, generator: dict[str, Any]) -> Path | None:
    """The folder of the text encoder that the generator was trained with.

    Errors: as `find_text_encoder`; DataError for another one, unless forced.
    """
    told = generator["condition"]
    if told["text_encoder"] is None:
        return None
    try:
        folder = find_text_encoder(config.text_encoder or told["text_encoder"])
    except (MissingInputError, UnavailableError) as error:
        error.hint = error.hint if config.text_encoder else "--text-encoder says where it is now"
        raise
    found = fingerprint(folder)
    if found != told["fingerprint"] and not config.force:
        reason = f"text encoder {found[:12]}, the generator was trained with {told['fingerprint'][:12]}"
        raise DataError(reason, where=folder, hint="name that one with --text-encoder; --force accepts another")
    return folder


def _guidance(config: Config) -> float:
    """Of one set of a sweep."""
    return config.guidance[0] if config.guidance else 1.0


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
    if set(config.guidance or (1,)) == {1}:
        return
    if generator["condition"]["kind"] == "none":
        raise UsageError("the generator is unconditional, nothing guides it", where=config.ckpt, hint="drop --guidance")
    if not generator["generator"].get("condition_dropout"):
        hint = "drop --guidance, or train with --condition-dropout above 0"
        raise UsageError("the generator was trained without condition dropout", where=config.ckpt, hint=hint)


def _check_sampling(config: Config, generator: dict[str, Any]) -> None:
    """A family that makes an image in one pass has nothing to choose."""
    if not registry.constants("generators", generator["arch"]).get("ONE_PASS"):
        sampler = config.sampler or default_sampler(generator["generator"].get("objective", "eps"))
        sampler_options(sampler, config.set, config.eta)
        return
    options = cfg.described(type(config))
    for name in _OF_STEPS:
        if getattr(config, name) != options[name][0].default:
            reason = f"{cfg.flag(name)} does not apply to {generator['arch']}, which makes an image in one pass"
            raise UsageError(reason, where=config.ckpt)


def _averages(config: Config) -> dict[str, torch.Tensor]:
    """The weights whose average is of the length asked for, by name; none for the published average."""
    if config.ema_length is None:
        return {}
    from corecli.engine.power_ema import reconstruct
    from corecli.engine.run import folder_of

    return reconstruct(folder_of(config.ckpt_path) / "averages", config.ema_length).tensors


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    """The weights and header of a generator's file or folder."""
    from corecli.base import checkpoint

    if not pipelines.is_own(path):
        return checkpoint.load(path, kind="generator")
    from corecli.generators.parts.folders import read_folder

    return read_folder(path)


def _build(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    family = registry.load("generators", header["arch"])
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in header["generator"].items()}
    generator = family.build(family.Config(**fields))
    generator.load_state_dict(tensors)
    return generator.eval()
