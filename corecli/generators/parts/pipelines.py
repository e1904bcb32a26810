"""Pipelines of diffusers as frozen generators: (seeds, prompts or images) -> uint8 images.

A pipeline works if its call accepts prompts, images or a batch size, and a list of torch generators. Each image has its
own generator, so it does not depend on its batch. The signature of the call decides which inputs it gets. The safety
checker is not loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from corecli.base.documents import check, read_json
from corecli.base.errors import WHOLE_FOLDER, CorecliError, DataError, UsageError
from corecli.base.schemas import SIDE
from corecli.base.silence import silence
from corecli.base.untrusted import INDEX, reason_of
from corecli.diffusion.samplers import scheduler_of
from corecli.engine.launch import is_out_of_memory
from corecli.nets.weights import pipelines

Kind = Literal["none", "captions", "images"]
_OURS = ("generator", "output_type", "num_images_per_prompt", "prompt", "image", "batch_size")  # --set cannot set these
_DEFAULT_INPUT_PX = 224
_TOKENIZED_AT_ONCE = 4096


class Pipeline:
    """A pipeline from a folder, computed in `dtype`; `kind` is the kind of its inputs."""

    kind: Kind

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        """Load the pipeline. Errors: DataError if it cannot be loaded; UsageError if its kind is not supported."""
        self._folder = folder
        with silence("diffusers", "transformers"):
            self._pipeline = _load(folder, dtype, device)
            self._pipeline.set_progress_bar_config(disable=True)
        self._parameters = inspect.signature(self._pipeline.__call__).parameters
        self.kind = _kind(self._parameters, folder)

    @property
    def input_px(self) -> int:
        """Size of its input images: the shorter side is resized to it and the center cropped."""
        names = ("feature_extractor", "image_feature_extractor")
        processors: list[Any] = [getattr(self._pipeline, name, None) for name in names]
        crop = next((processor.crop_size for processor in processors if hasattr(processor, "crop_size")), None)
        if crop is None:
            return _DEFAULT_INPUT_PX
        with _errors("the image processor has no size", self._folder):
            size = int(crop if isinstance(crop, int) else min(crop["height"], crop["width"]))
        return check(size, SIDE, where=self._folder, path="crop_size")

    def use(self, *, sampler: str | None, arguments: Mapping[str, Any], call: Mapping[str, Any]) -> None:
        """Choose how it samples.

        sampler: selects the scheduler; None keeps its own. arguments: options of its call or of its scheduler, by name.
        call: further options of its call, ignored if None. Errors: UsageError for an option that does not exist.
        """
        given = {name: value for name, value in call.items() if value is not None}
        unknown = next((name for name in given if name not in self._parameters), None)
        if unknown is not None:
            raise UsageError(f"{type(self._pipeline).__name__} has no option {unknown}", where=self._folder)
        of_call = {n: v for n, v in arguments.items() if n in self._parameters and n not in _OURS}
        self._set_scheduler(sampler, {n: v for n, v in arguments.items() if n not in of_call})
        if "eta" in given and "eta" not in inspect.signature(self._pipeline.scheduler.step).parameters:
            raise UsageError(f"{type(self._pipeline.scheduler).__name__} has no option eta", where=self._folder)
        self._call = {**of_call, **given}

    @property
    def scheduler(self) -> str:
        """Class name of its scheduler."""
        return type(self._pipeline.scheduler).__name__

    def num_cut(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Return (number of prompts that are too long for every tokenizer, maximum number of tokens)."""
        tokenizers = [part for name, part in self._pipeline.components.items() if "tokenizer" in name and part]
        longest = max(tokenizers, key=lambda tokenizer: tokenizer.model_max_length)
        most, cut = int(longest.model_max_length), 0
        with silence("diffusers", "transformers"), _errors("the tokenizer refuses the captions", self._folder):
            for start in range(0, len(prompts), _TOKENIZED_AT_ONCE):
                tokens = longest(list(prompts[start : start + _TOKENIZED_AT_ONCE])).input_ids
                cut += sum(len(ids) > most for ids in tokens)
        return cut, most

    @torch.no_grad()
    def generate(self, seeds: list[int], condition: Sequence[str] | Tensor | None) -> Tensor:
        """Return images uint8 [B, 3, S, S], made from B prompts, from images uint8 [B, 3, H, W], or from nothing.

        Image i is a function of seeds[i] and its condition. Errors: DataError if images are not finite or the pipeline
        refuses its inputs.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = {**self._call, **self._inputs(condition, len(seeds))}
        with silence("diffusers", "transformers"), _errors("the pipeline refuses its inputs", self._folder):
            made = self._pipeline(**call, generator=generators, output_type="pt").images
        return _to_uint8(made, self._folder)

    def _inputs(self, condition: Any, num: int) -> dict[str, Any]:
        if self.kind == "none":
            return {"batch_size": num}
        found: dict[str, Any] = {"prompt": list(condition)} if self.kind == "captions" else {"image": _pil(condition)}
        if self.kind == "images" and "prompt" in self._parameters:
            found["prompt"] = [""] * num
        if "negative_prompt" in self._call:
            found["negative_prompt"] = [self._call["negative_prompt"]] * num
        return found

    def _set_scheduler(self, sampler: str | None, arguments: Mapping[str, Any]) -> None:
        import diffusers

        scheduler: Any = self._pipeline.scheduler
        kind = type(scheduler) if sampler is None else getattr(diffusers, scheduler_of(sampler))
        if kind is not type(scheduler) and kind not in getattr(scheduler, "compatibles", []):
            reason = f"the sampler {sampler} does not work with {type(scheduler).__name__}"
            raise UsageError(reason, where=self._folder, hint="omit --sampler to use its own scheduler")
        known = inspect.signature(kind.__init__).parameters
        unknown = next((name for name in arguments if name not in known), None)
        if unknown is not None:
            reason = f"neither the pipeline nor {kind.__name__} has an option {unknown!r}"
            raise UsageError(
                reason, where=self._folder, hint=f"the options of the scheduler are {', '.join(list(known)[1:])}"
            )
        with silence("diffusers", "transformers"), _errors("the scheduler cannot be used", self._folder):
            self._pipeline.scheduler = kind.from_config(scheduler.config, **arguments)


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    listed = read_json(folder / INDEX, dict, any_integer=True)
    without: dict[str, Any] = {pipelines.UNUSED: None} if pipelines.UNUSED in listed else {}
    without |= {"requires_safety_checker": False} if "requires_safety_checker" in listed else {}
    variant = pipelines.variant_of(folder)
    pipelines.check_export(folder)
    with _errors("the pipeline cannot be loaded", folder, hint=WHOLE_FOLDER):
        parts = _load_parts(folder, dtype, variant)
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            torch_dtype=dtype,
            variant=variant,
            **parts,
            **without,
        )
    return pipeline.to(device)


@contextmanager
def _errors(what: str, folder: Path, *, hint: str | None = None) -> Iterator[None]:
    """Convert what the libraries raise to a DataError, except running out of memory."""
    try:
        yield
    except CorecliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise DataError(f"{what}: {reason_of(error)}", where=folder, hint=hint) from error


def _load_parts(folder: Path, dtype: torch.dtype, variant: str | None) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline. Errors: ValueError for missing weights, which the libraries draw at random."""
    found = {}
    for part, (library, kind) in pipelines.networks_of(folder).items():
        options = {"torch_dtype": dtype, "variant": variant if pipelines.has_half(folder / part) else None}
        network: Any = getattr(import_module(library), kind)
        found[part], report = network.from_pretrained(
            folder / part, local_files_only=True, trust_remote_code=False, output_loading_info=True, **options
        )
        if missing := report["missing_keys"]:
            raise ValueError(f"{len(missing)} weights of the part {part} are missing: {min(missing)}")
    return found


def _kind(parameters: Mapping[str, inspect.Parameter], folder: Path) -> Kind:
    """Return the kind of inputs of a call with these parameters. Errors: UsageError if it is not supported."""
    if "generator" in parameters and "mask_image" not in parameters:
        if "image" in parameters:
            return "images"
        if "prompt" in parameters:
            return "captions"
        if "batch_size" in parameters:
            return "none"
    raise UsageError("the pipeline has no supported input: a prompt, an image or a batch size", where=folder)


def _pil(images: Tensor) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]


def _to_uint8(made: Any, folder: Path) -> Tensor:
    """Return images of floats in 0..1 as uint8, rounded as diffusers does."""
    x = torch.from_numpy(made).permute(0, 3, 1, 2) if isinstance(made, np.ndarray) else made
    if not x.isfinite().all():
        hint = "use another --precision, or a scheduler that fits the prediction of the network"
        raise DataError("the pipeline made images that are not finite", where=folder, hint=hint)
    return (x.float() * 255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
