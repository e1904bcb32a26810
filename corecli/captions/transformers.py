"""Runs a causal language model of transformers in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.documents import read_json
from corecli.base.errors import WHOLE_FOLDER, DataError, UnavailableError
from corecli.base.schemas import WEIGHT_MAP
from corecli.base.silence import silence
from corecli.base.untrusted import reason_of, refuse_code
from corecli.captions.parts.backend import STOP, Answer, Request, Settings

if TYPE_CHECKING:
    import torch

NEEDS_MODEL = True
USES = ("batch_size",)
MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def check(settings: Settings) -> None:
    """Check the folder of the model if it is on this machine. Errors: as `check_folder`."""
    if Path(settings.model).is_dir():
        check_folder(Path(settings.model))


def open_backend(settings: Settings) -> Local:
    """Load the model in the folder `model`. Errors: as `check_folder`; UnavailableError without transformers."""
    return Local(settings)


def check_folder(folder: Path) -> None:
    """Check that a model folder is complete and names no code. Errors: DataError naming the file."""
    refuse_code(folder)
    if not (folder / "config.json").is_file():
        raise DataError("not a model of transformers: config.json is missing", where=folder, hint=WHOLE_FOLDER)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise DataError(f"the tokenizer is missing: none of {', '.join(_TOKENIZERS)}", where=folder, hint=WHOLE_FOLDER)
    index = folder / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.is_file():
        wanted = set(read_json(index, WEIGHT_MAP).get("weight_map", {}).values())
    for name in sorted(wanted):
        if not (folder / name).is_file():
            raise DataError(f"the weights {name} are missing", where=folder, hint=WHOLE_FOLDER)


class Local:
    """A backend that answers `batch_size` requests at once, each with random numbers from its own seed."""

    def __init__(self, settings: Settings) -> None:
        check_folder(Path(settings.model))
        if find_spec("transformers") is None:
            hint = "pip install 'corecli[text]'"
            raise UnavailableError("the backend transformers needs transformers", hint=hint)
        import torch
        from transformers import GenerationConfig

        self._settings = settings
        self._device = torch.device(_device(settings.device))
        is_half = settings.precision == "bf16" or (settings.precision == "auto" and self._device.type == "cuda")
        self._tokenizer, self._model = _load(settings.model, torch.bfloat16 if is_half else torch.float32)
        if settings.api == "chat" and self._tokenizer.chat_template is None:
            raise DataError("the model has no chat template", where=settings.model, hint="use --api completions")
        self._model.to(self._device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.convert_ids_to_tokens(0)
        published = self._model.generation_config  # keep its end tokens, not its decoding
        self._model.generation_config = GenerationConfig(
            eos_token_id=published.eos_token_id, pad_token_id=self._tokenizer.pad_token_id
        )

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer batch by batch, in the order of the requests."""
        while batch := list(itertools.islice(requests, self._settings.batch_size)):
            yield from zip(batch, self._generate(batch), strict=True)

    def _generate(self, batch: list[Request]) -> list[Answer]:
        import torch

        texts = [self._text(request) for request in batch]
        with_special = self._settings.api == "completions"  # a chat template writes its own
        shown = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=with_special)
        shown = {name: shown[name].to(self._device) for name in ("input_ids", "attention_mask")}
        length = shown["input_ids"].shape[1]
        with torch.inference_mode():
            made = self._model.generate(
                **shown,
                do_sample=False,
                max_new_tokens=self._settings.max_tokens,
                logits_processor=self._processors(batch),
                stopping_criteria=[_AfterLine(self._tokenizer, length)] if with_special else [],
            )
        return [self._answer(row) for row in made[:, length:]]

    def _text(self, request: Request) -> str:
        if self._settings.api == "completions":
            return request.prompt.text()
        try:
            return self._tokenizer.apply_chat_template(
                request.prompt.messages(), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # of the template, which runs in a sandbox
            reason = f"the chat template cannot be used: {reason_of(error)}"
            raise DataError(reason, where=self._settings.model, hint="use --api completions") from error

    def _processors(self, batch: list[Request]) -> Any:
        """Return the steps of decoding; the last adds noise, so that the largest logit is a sample."""
        from transformers import LogitsProcessorList
        from transformers.generation.logits_process import (
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        settings, found = self._settings, LogitsProcessorList()
        if settings.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.temperature == 0:
            return found
        found.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            found.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            found.append(TopPLogitsWarper(settings.top_p))
        found.append(_Gumbel([request.seed for request in batch]))  # type: ignore[arg-type]
        return found

    def _answer(self, tokens: torch.Tensor) -> Answer:
        ends = {self._tokenizer.eos_token_id, *_listed(self._model.generation_config.eos_token_id)}
        kept = list(itertools.takewhile(lambda token: token not in ends, tokens.tolist()))
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        is_over = len(kept) < self._settings.max_tokens
        if self._settings.api == "completions":
            text, line_end, _ = text.partition(STOP)
            is_over = is_over or bool(line_end)
        return Answer(raw=text, finish_reason="stop" if is_over else "length")


def _load(folder: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a tokenizer and a model. Errors: DataError for damaged files and for missing weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with silence("transformers"):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, padding_side="left"
            )
            kind: Any = AutoModelForCausalLM
            model, report = kind.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, dtype=dtype, output_loading_info=True
            )
        if report["missing_keys"]:
            raise ValueError(f"{len(report['missing_keys'])} weights are missing: {min(report['missing_keys'])}")
    except Exception as error:  # libraries raise many kinds
        raise DataError(f"cannot be loaded: {reason_of(error)}", where=folder, hint=WHOLE_FOLDER) from error
    return tokenizer, model


class _Gumbel:
    """Add noise to logits [B, K] so that the largest is a sample of softmax(logits) (the Gumbel-max trick).

    Row i draws from a CPU generator with its own seed, so its answer does not depend on the other rows.
    """

    def __init__(self, seeds: list[int]) -> None:
        import torch

        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        noise = torch.stack([torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in self._generators])
        gumbel = -torch.log(-torch.log(noise.clamp(min=1e-300)))
        return scores.double() + gumbel.to(scores.device)


class _AfterLine:
    """End a row at its first line break."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        import torch

        texts = self._tokenizer.batch_decode(input_ids[:, self._length :], skip_special_tokens=True)
        return torch.tensor([STOP in text for text in texts], device=input_ids.device)


def _listed(tokens: int | list[int] | None) -> list[int]:
    return [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError("no CUDA device was found", hint="use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
