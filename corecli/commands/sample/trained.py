"""Sampling from a generator that train-gen wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corecli.base.errors import DataError, MissingInputError, UnavailableError, UsageError, about
from corecli.base.files import sha256_file
from corecli.commands.parts.captioned import Reader
from corecli.commands.parts.inputs import load_table
from corecli.commands.sample.images import Choice, Images, from_nothing, from_rows
from corecli.commands.sample.sampler import Sampling
from corecli.data.captions import read_captions
from corecli.data.rows import make_rows
from corecli.nets.weights import pipelines
from corecli.nets.weights.text_encoders import find_text_encoder, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from corecli.engine.dist import World


class Trained:
    """A generator, the images to make with it, and the table or captions they are made from.

    Errors: DataError, UsageError.
    """

    def __init__(
        self,
        ckpt: Path,
        *,
        features: Path | None,
        captions: Path | None,
        text_encoder: str | None,
        choice: Choice,
        sampling: Sampling,
        ema_length: float | None,
        precision: str,
        force: bool,
    ) -> None:
        self._ckpt, self._sampling, self._precision, self._seed = ckpt, sampling, precision, choice.seed
        self._tensors, self._header = _load(ckpt)
        self._ema_length = ema_length
        self.class_names = tuple(self._header["class_names"])
        self.table = load_table(features)
        of_table = None if self.table is None else self.table.header["fingerprint"]
        self.inputs = {"ckpt": self._header["fingerprint"], "features": of_table}
        self._condition: torch.Tensor | None = None
        self._texts: list[str] = []
        self._text_encoder: Path | None = None
        if features is not None:
            self.images = self._from_table(features, choice, force=force)
        elif captions is not None:
            self.images = self._from_captions(captions, text_encoder, choice, force=force)
        elif self._header["condition"]["kind"] == "labels":
            self.images = self._from_labels(choice)
        else:
            self.images = from_nothing(choice)

    def prepare(self, world: World) -> _Ready:
        """Return the generator on its device, ready to sample. Errors: DataError, UsageError."""
        from corecli.engine.precision import place
        from corecli.generators.parts.generator import build_saved

        tensors = self._tensors | _averages(self._ckpt, self._ema_length)
        with about(self._ckpt):
            generator = place(build_saved(self._header, tensors), world.device)
        reader = None
        if self._texts:
            length = generator.config.caption_length
            reader = Reader(self._text_encoder, length=length, device=world.device)
        conditions = _Conditions(generator, self.images, self._condition, self._texts, reader)
        generator.check_condition(conditions.sample(), guidance=self._sampling.guidance)
        sampler = self._sampling.sampler_for(self._header["generator"])

        def generate(start: int, stop: int) -> torch.Tensor:
            from corecli.engine.precision import autocast

            with about(self._ckpt), autocast(self._precision, world.device):
                condition = conditions.at(start, stop)
                return generator.generate(
                    self.images.seeds(self._seed, start, stop),
                    None if condition is None else condition.to(world.device),
                    sampler=self._sampling.sampler,
                    steps=self._sampling.steps,
                    guidance=self._sampling.guidance,
                    guidance_interval=self._sampling.interval,
                    spacing=self._sampling.spacing,
                    sampler_options=self._sampling.options_for(sampler) if sampler else None,
                )

        return _Ready(generate, sampler=sampler, notes=conditions.notes())

    def _from_table(self, path: Path, choice: Choice, *, force: bool) -> Images:
        table = self.table
        assert table is not None
        check_table(self._header, table.header, ckpt=self._ckpt, features=path, force=force)
        self._condition = table.features
        return from_rows(choice, make_rows(table.keys, groups=table.groups, labels=table.labels), where=path)

    def _from_captions(self, path: Path, text_encoder: str | None, choice: Choice, *, force: bool) -> Images:
        self._text_encoder = _find_text_encoder(self._header["condition"], text_encoder, force=force)
        if self._text_encoder is not None:
            self.inputs["text_encoder"] = fingerprint(self._text_encoder)
        captions = read_captions(path)
        self._texts, self.inputs["captions"] = captions.texts, sha256_file(path)
        rows, self.class_names = captions.rows(path)
        return from_rows(choice, rows, where=path)

    def _from_labels(self, choice: Choice) -> Images:
        import torch

        names = self.class_names
        self._condition = torch.arange(len(names))
        rows = make_rows([f"{name}/{name}" for name in names], labels=np.arange(len(names)))
        return from_rows(choice, rows, where=self._ckpt)


class _Conditions:
    """The conditions of images: rows of a tensor, captions that a reader encodes when needed, or nothing."""

    def __init__(
        self, generator: Any, images: Images, tensor: torch.Tensor | None, texts: list[str], reader: Reader | None
    ) -> None:
        self._generator, self._source, self._tensor = generator, images.source, tensor
        self._texts, self._reader = texts, reader

    def at(self, start: int, stop: int) -> torch.Tensor | None:
        """Return the conditions of some images."""
        rows = self._source[start:stop]
        if self._reader is not None:
            return self._reader.encode(self._generator, [self._texts[i] for i in rows])
        return None if self._tensor is None else self._tensor[rows]

    def sample(self) -> torch.Tensor | None:
        """Return conditions to check: the whole tensor, or the first caption."""
        return self._reader.encode(self._generator, self._texts[:1]) if self._reader else self._tensor

    def notes(self) -> tuple[str, ...]:
        """Return a note if captions are cut."""
        if self._reader is None:
            return ()
        return self._reader.cut([self._texts[i] for i in sorted(set(self._source.tolist()))])


class _Ready:
    def __init__(self, generate: Any, *, sampler: str | None, notes: tuple[str, ...]) -> None:
        self._generate, self.sampler, self.notes = generate, sampler, notes

    def make(self, batches: Iterator[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Yield the images of batches (start, stop), uint8 [B, 3, S, S]."""
        return (self._generate(start, stop) for start, stop in batches)


def check_table(generator: dict[str, Any], table: dict[str, Any], *, ckpt: Path, features: Path, force: bool) -> None:
    """Check by their headers that a table fits a generator.

    Errors: UsageError if the generator is not conditioned on features; DataError if the table's encoder or layer is
    not the one of the generator's training, unless forced.
    """
    condition = generator["condition"]
    check_kind(condition["kind"], "features", ckpt)
    for name in () if force else ("encoder", "layer"):
        found, expected = (str(header.get(name))[:12] for header in (table, condition))
        if condition.get(name) != table.get(name):
            reason = f"features of {name} {found}, but the generator was trained on {expected}"
            hint = "extract with the encoder and layer it was trained on; --force accepts it"
            raise DataError(reason, where=features, hint=hint)


def check_kind(kind: str, given: str, ckpt: Path) -> None:
    """Check that a generator is conditioned on what is given. Errors: UsageError."""
    if kind != given:
        reason = f"the generator is conditioned on {kind.replace('none', 'nothing')}, not on {given}"
        raise UsageError(reason, where=ckpt, hint=f"drop --{given}")


def _find_text_encoder(condition: dict[str, Any], given: str | None, *, force: bool) -> Path | None:
    """Return the folder of the text encoder that the generator was trained with, None if it reads bytes.

    Errors: as `find_text_encoder`; DataError if it is another one, unless forced.
    """
    if condition.get("text_encoder") is None:
        return None
    try:
        folder = find_text_encoder(given or condition["text_encoder"])
    except (MissingInputError, UnavailableError) as error:
        error.hint = error.hint if given else "give its path with --text-encoder"
        raise
    found, expected = fingerprint(folder), condition.get("fingerprint")
    if found != expected and not force:
        reason = f"the text encoder is {found[:12]}, but the generator was trained with {str(expected)[:12]}"
        raise DataError(reason, where=folder, hint="name that one with --text-encoder; --force accepts another")
    return folder


def _averages(ckpt: Path, length: float | None) -> dict[str, torch.Tensor]:
    """Return the weights averaged over a length, by name; {} for the published average."""
    if length is None:
        return {}
    from corecli.engine.power_ema import reconstruct
    from corecli.engine.run import folder_of

    return reconstruct(folder_of(ckpt) / "averages", length).tensors


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the tensors and the header of a generator file, or of a folder in diffusers' layout."""
    from corecli.base import checkpoint

    if not pipelines.is_own(path):
        return checkpoint.load(path, kind="generator")
    from corecli.generators.parts.folders import read_folder

    return read_folder(path)
