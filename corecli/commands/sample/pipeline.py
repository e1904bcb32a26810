"""Sampling from a pipeline of diffusers: what its images are made from, and what of a line applies to it."""

from __future__ import annotations

import json
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base.errors import UsageError
from corecli.commands.sample.options import PREFIX
from corecli.commands.sample.plan import from_nothing, from_rows
from corecli.data.captions import read_captions
from corecli.data.imageset import open_set
from corecli.diffusion.samplers import scheduler_of
from corecli.nets.weights import pipelines

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.commands.sample.options import Config
    from corecli.engine.dist import World
    from corecli.generators.parts.pipelines import Pipeline

_OF_GENERATORS = ("features", "text_encoder", "spacing", "guidance_interval", "ema_length")
_GIVEN = {"captions": "--captions", "images": "--images"}


def check(config: Config) -> str:
    """What the images are made from. Errors: as of sampling, as far as they show without torch."""
    for name in _OF_GENERATORS:
        if getattr(config, name) is not None:
            hint = "options of its scheduler go by --set" if name == "spacing" else None
            raise UsageError(f"{cfg.flag(name)} does not apply to a pipeline", where=config.ckpt, hint=hint)
    kind = _kind_given(config)
    if kind == "none" and (config.rows is not None or config.order != "table"):
        raise UsageError("--rows and --order need --captions or --images")
    arguments(config)
    if config.sampler is not None:
        scheduler_of(config.sampler)
    if Path(_place(config)).is_dir():
        pipelines.check_pipeline(Path(_place(config)))
    if config.captions is not None:
        read_captions(config.captions).rows(config.captions)
    if config.images is not None:
        open_set(config.images)
    return kind


def arguments(config: Config) -> dict[str, Any]:
    """What --set gives, numbers and flags as such. Errors: UsageError for an item without a value."""
    return {name: _literal(text) for name, text in cfg.named_values(config.set).items()}


class Pipelines:
    """A folder of a pipeline, and the captions or images that its own are made from.

    Errors: MissingInputError, UnavailableError, DataError, UsageError.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._kind = config, _kind_given(config)
        self._folder = pipelines.find_pipeline(_place(config))
        self.inputs: dict[str, str | None] = {"ckpt": pipelines.fingerprint(self._folder)}
        self.class_names: tuple[str, ...] = ()
        self._texts: list[str] = []
        if config.captions is not None:
            captions = read_captions(config.captions)
            self._texts = captions.texts
            rows, self.class_names = captions.rows(config.captions)
            self.plan = from_rows(config, rows)
            self.inputs["captions"] = pipelines.sha256_file(config.captions)
        elif config.images is not None:
            images = open_set(config.images)
            self.class_names = images.class_names
            self.plan = from_rows(config, images.rows)
            self.inputs["images"] = images.fingerprint
        else:
            self.plan = from_nothing(config)

    def prepare(self, world: World) -> _Ready:
        """The pipeline on its device, set to sample as the line says. Errors: DataError, UsageError."""
        from corecli.engine.precision import dtype_of
        from corecli.generators.parts.pipelines import Pipeline

        config = self._config
        pipeline = Pipeline(self._folder, device=world.device, dtype=dtype_of(config.precision, world.device))
        self._check_kind(pipeline.kind)
        call = {
            "num_inference_steps": config.steps,
            "guidance_scale": config.guidance[0] if config.guidance else None,
            "negative_prompt": config.negative_prompt,
            "eta": config.eta or None,
        }
        pipeline.use(sampler=config.sampler, arguments=arguments(config), call=call)
        return _Ready(self, pipeline, notes=self._cut(pipeline))

    def conditions(self, batches: Iterator[tuple[int, int]], *, size_px: int) -> Iterator[Any]:
        """What each batch of (start, stop) rows of the plan is made from: prompts, images read ahead, or None."""
        import torch

        from corecli.data.loader import read_batches

        sources = (self.plan.source[start:stop] for start, stop in batches)
        if self._kind == "images":
            assert self._config.images is not None
            images = open_set(self._config.images, image_size=size_px)
            return (read for read, _ in read_batches(images, sources, device=torch.device("cpu")))
        return ([self._texts[i] for i in rows] if self._texts else None for rows in sources)

    def seeds(self, start: int, stop: int) -> list[int]:
        """The noise seeds of some images."""
        return self.plan.seeds(self._config.seed, start, stop)

    def _check_kind(self, kind: str) -> None:
        if kind == self._kind:
            return
        if kind == "none":
            raise UsageError("the pipeline makes images from nothing", where=self._folder, hint="drop what is given")
        given = f", not from {self._kind}" if self._kind != "none" else ""
        raise UsageError(
            f"the pipeline makes images from {kind}{given}", where=self._folder, hint=f"give {_GIVEN[kind]}"
        )

    def _cut(self, pipeline: Pipeline) -> tuple[str, ...]:
        used = [self._texts[i] for i in sorted(set(self.plan.source.tolist()))] if self._texts else []
        cut, most = pipeline.num_cut(used) if used else (0, 0)
        return (f"{cut} of {len(used)} captions are longer than {most} tokens and were cut",) if cut else ()


class _Ready:
    def __init__(self, source: Pipelines, pipeline: Pipeline, *, notes: tuple[str, ...]) -> None:
        self._source, self._pipeline, self.notes = source, pipeline, notes
        self.sampler = pipeline.scheduler

    def make(self, batches: Iterator[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """The images of batches of (start, stop) rows of the plan, uint8 [B, 3, S, S]."""
        batches, ahead = tee(batches)
        conditions = self._source.conditions(ahead, size_px=self._pipeline.input_px)
        for (start, stop), condition in zip(batches, conditions, strict=True):
            yield self._pipeline.generate(self._source.seeds(start, stop), condition)


def _kind_given(config: Config) -> str:
    if config.captions is not None and config.images is not None:
        raise UsageError("--captions and --images are two things to make images from", hint="give one")
    return "captions" if config.captions is not None else "images" if config.images is not None else "none"


def _place(config: Config) -> str:
    return config.ckpt.removeprefix(PREFIX)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
