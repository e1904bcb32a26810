"""Sampling from a pipeline of diffusers, from captions, from images or from nothing."""

from __future__ import annotations

from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base import config as cfg
from corecli.base.documents import loads
from corecli.base.errors import UsageError
from corecli.commands.sample.images import Choice, from_nothing, from_rows
from corecli.commands.sample.sampler import Sampling
from corecli.data.captions import read_captions
from corecli.data.imageset import open_set
from corecli.nets.weights import pipelines

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.engine.dist import World
    from corecli.generators.parts.pipelines import Pipeline

_OPTIONS = {"captions": "--captions", "images": "--images"}


def arguments(items: tuple[str, ...]) -> dict[str, Any]:
    """Return the NAME=VALUE items of --set, with JSON values parsed. Errors: UsageError if an item has no value."""
    return {name: _literal(text) for name, text in cfg.named_values(items).items()}


def kind_given(captions: Path | None, images: str | None) -> str:
    """Return what images are made from: captions, images or none. Errors: UsageError if both are given."""
    if captions is not None and images is not None:
        raise UsageError("--captions and --images exclude each other", hint="give one")
    return "captions" if captions is not None else "images" if images is not None else "none"


class Pipelines:
    """A pipeline's folder, the images to make with it, and the captions or images they are made from.

    place: the folder, or an id on the hub.
    Errors: MissingInputError, UnavailableError, DataError, UsageError.
    """

    def __init__(
        self,
        place: str,
        *,
        captions: Path | None,
        images: str | None,
        choice: Choice,
        sampling: Sampling,
        call: dict[str, Any],
        precision: str,
    ) -> None:
        self._sampling, self._call, self._precision, self._seed = sampling, call, precision, choice.seed
        self._kind, self._set = kind_given(captions, images), images
        self._folder = pipelines.find_pipeline(place)
        self.inputs: dict[str, str | None] = {"ckpt": pipelines.fingerprint(self._folder)}
        self.class_names: tuple[str, ...] = ()
        self._texts: list[str] = []
        if captions is not None:
            found = read_captions(captions)
            self._texts = found.texts
            rows, self.class_names = found.rows(captions)
            self.images = from_rows(choice, rows, where=captions)
            self.inputs["captions"] = pipelines.sha256_file(captions)
        elif images is not None:
            real = open_set(images)
            self.class_names = real.class_names
            self.images = from_rows(choice, real.rows, where=images)
            self.inputs["images"] = real.fingerprint
        else:
            self.images = from_nothing(choice)

    def prepare(self, world: World) -> _Ready:
        """Return the pipeline on its device, ready to sample. Errors: DataError, UsageError."""
        from corecli.engine.precision import dtype_of
        from corecli.generators.parts.pipelines import Pipeline

        pipeline = Pipeline(self._folder, device=world.device, dtype=dtype_of(self._precision, world.device))
        self._check_kind(pipeline.kind)
        pipeline.use(sampler=self._sampling.sampler, arguments=arguments(self._sampling.items), call=self._call)
        return _Ready(self, pipeline, notes=self._cut(pipeline))

    def conditions(self, batches: Iterator[tuple[int, int]], *, size_px: int) -> Iterator[Any]:
        """Yield what each batch (start, stop) is made from: prompts, images that are read ahead, or None."""
        import torch

        from corecli.data.loader import read_batches

        sources = (self.images.source[start:stop] for start, stop in batches)
        if self._set is not None:
            images = open_set(self._set, image_size=size_px)
            return (read for read, _ in read_batches(images, sources, device=torch.device("cpu")))
        return ([self._texts[i] for i in rows] if self._texts else None for rows in sources)

    def seeds(self, start: int, stop: int) -> list[int]:
        """Return the noise seeds of some images."""
        return self.images.seeds(self._seed, start, stop)

    def _check_kind(self, kind: str) -> None:
        if kind == self._kind:
            return
        if kind == "none":
            hint = f"drop {_OPTIONS[self._kind]}"
            raise UsageError("the pipeline makes images from nothing", where=self._folder, hint=hint)
        given = f", not from {self._kind}" if self._kind != "none" else ""
        raise UsageError(
            f"the pipeline makes images from {kind}{given}", where=self._folder, hint=f"give {_OPTIONS[kind]}"
        )

    def _cut(self, pipeline: Pipeline) -> tuple[str, ...]:
        used = [self._texts[i] for i in sorted(set(self.images.source.tolist()))] if self._texts else []
        cut, most = pipeline.num_cut(used) if used else (0, 0)
        return (f"{cut} of {len(used)} captions are longer than {most} tokens and were cut",) if cut else ()


class _Ready:
    def __init__(self, source: Pipelines, pipeline: Pipeline, *, notes: tuple[str, ...]) -> None:
        self._source, self._pipeline, self.notes = source, pipeline, notes
        self.sampler = pipeline.scheduler

    def make(self, batches: Iterator[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yield the images of batches (start, stop), uint8 [B, 3, S, S]."""
        batches, ahead = tee(batches)
        conditions = self._source.conditions(ahead, size_px=self._pipeline.input_px)
        for (start, stop), condition in zip(batches, conditions, strict=True):
            yield self._pipeline.generate(self._source.seeds(start, stop), condition)


def _literal(text: str) -> Any:
    try:
        return loads(text)
    except ValueError:
        return text
