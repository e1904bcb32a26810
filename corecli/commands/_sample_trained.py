"""Sampling from a generator of `train-gen`: what it is conditioned on, and what of a line applies to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base import config as cfg
from corecli.base import registry
from corecli.base.errors import DataError, UsageError, about
from corecli.commands import _inputs, _sample_rows
from corecli.data.rows import make_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.commands._sample_rows import Plan
    from corecli.commands.sample import Config
    from corecli.engine.dist import World

_OF_PIPELINES = ("captions", "images", "negative_prompt", "set")
_OF_STEPS = ("sampler", "steps", "eta", "spacing", "guidance", "guidance_interval")


def check(config: Config) -> str:
    """What the generator is conditioned on. Errors: as of sampling, as far as they show without torch."""
    header = _inputs.check_header(config.ckpt_path, "generator")
    for name in _OF_PIPELINES:
        if getattr(config, name):
            raise UsageError(f"{cfg.flag(name)} is for pipelines of diffusers", where=config.ckpt)
    if config.features is not None:
        _check_table(config, header, _inputs.check_header(config.features, "features"))
    kind = header["condition"]["kind"]
    if kind == "features" and config.features is None:
        raise UsageError("the generator is conditioned on features", where=config.ckpt, hint="give --features")
    if config.features is None and (config.rows is not None or config.order != "table"):
        raise UsageError("--rows and --order need --features")
    _check_sampling(config, header)
    _check_guidance(config, header)
    return kind


class Trained:
    """A generator file and the table it is conditioned on. Errors: DataError, UsageError."""

    def __init__(self, config: Config) -> None:
        from corecli.base import checkpoint

        self._config = config
        self._tensors, self._header = checkpoint.load(config.ckpt_path, kind="generator")
        table = _inputs.load_table(config.features)
        self.class_names = tuple(self._header["class_names"])
        self.inputs = {"ckpt": self._header["fingerprint"], "features": table.header["fingerprint"] if table else None}
        self._condition: torch.Tensor | None = None
        self.table, self.plan = table, self._planned(table)

    def prepare(self, world: World) -> _Ready:
        """The generator on its device, its condition and guidance checked. Errors: DataError, UsageError."""
        from corecli.engine.precision import place

        generator = place(_build(self._header, self._tensors | _averages(self._config)), world.device)
        generator.check_condition(self._condition, guidance=_guidance(self._config))
        return _Ready(self._config, generator, self.plan, self._condition, world.device)

    def _planned(self, table: Any) -> Plan:
        import torch

        if table is not None:
            _check_table(self._config, self._header, table.header)
            self._condition = table.features
            return _sample_rows.from_rows(self._config, make_rows(table.keys, groups=table.groups, labels=table.labels))
        if self._header["condition"]["kind"] == "labels":
            names = self.class_names
            self._condition = torch.arange(len(names))
            rows = make_rows([f"{name}/{name}" for name in names], labels=np.arange(len(names)))
            return _sample_rows.from_rows(self._config, rows)
        return _sample_rows.from_nothing(self._config)


class _Ready:
    notes: tuple[str, ...] = ()

    def __init__(
        self, config: Config, generator: Any, plan: Plan, condition: torch.Tensor | None, device: torch.device
    ) -> None:
        self._config, self._generator, self._plan = config, generator, plan
        self._condition, self._device = condition, device
        objective = getattr(generator, "objective", None)
        self.sampler = config.sampler or (objective and objective.sampler)

    def make(self, batches: Iterator[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """The images of batches of (start, stop) rows of the plan, uint8 [B, 3, S, S]."""
        from corecli.engine.precision import autocast

        config, told = self._config, self._condition
        for start, stop in batches:
            condition = None if told is None else told[self._plan.source[start:stop]].to(self._device)
            with about(config.ckpt), autocast(config.precision, self._device):
                made = self._generator.generate(
                    self._plan.seeds(config.seed, start, stop),
                    condition,
                    sampler=config.sampler,
                    steps=config.steps,
                    eta=config.eta,
                    guidance=_guidance(config),
                    guidance_interval=_interval(config),
                    spacing=config.spacing,
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


def _build(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    family = registry.load("generators", header["arch"])
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in header["generator"].items()}
    generator = family.build(family.Config(**fields))
    generator.load_state_dict(tensors)
    return generator.eval()
