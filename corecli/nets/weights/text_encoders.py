"""Frozen text encoders of transformers, from a folder or a hub, as a condition of generators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.errors import WHOLE_FOLDER, DataError, UnavailableError
from corecli.base.files import read_json, sha256_file
from corecli.base.silence import silence
from corecli.base.untrusted import refuse_code
from corecli.nets.weights.hub import find_folder
from corecli.nets.weights.pipelines import has_tokenizer

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 128  # where neither the user nor the tokenizer says
_FILES = [f"{part}{name}" for part in ("", "*/") for name in ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")]
_WEIGHTS = (".safetensors", ".bin")
_AT_ONCE = 64
_ANOTHER = "take an encoder of text, as CLIP or T5"


def find_text_encoder(place: str) -> Path:
    """The folder of a text encoder with its tokenizer, or of a pipeline that has both as parts, by path or hub id.

    Errors: MissingInputError, UnavailableError, and those of `check_text_encoder`.
    """
    folder = find_folder(place, patterns=_FILES)
    check_text_encoder(folder)
    return folder


def check_text_encoder(folder: Path) -> None:
    """Errors: DataError naming what is missing; UnavailableError without transformers."""
    if find_spec("transformers") is None:
        raise UnavailableError("a text encoder needs transformers", where=folder, hint="pip install 'corecli[text]'")
    refuse_code(folder)
    encoder, tokenizer = _parts(folder)
    if not (encoder / "config.json").is_file():
        raise DataError("no text encoder of transformers: it has no config.json", where=encoder, hint=WHOLE_FOLDER)
    if not any(path.suffix in _WEIGHTS for path in encoder.iterdir()):
        raise DataError("the text encoder holds no weights", where=encoder, hint=WHOLE_FOLDER)
    if not has_tokenizer(tokenizer):
        raise DataError("the text encoder has no tokenizer", where=tokenizer, hint=WHOLE_FOLDER)


def fingerprint(folder: Path) -> str:
    """The sha256 of the names and contents of the files of a text encoder and of its tokenizer."""
    found: Any = hashlib.sha256()
    for part in dict.fromkeys(_parts(folder)):
        for path in sorted(part.iterdir()):
            if any(path.match(pattern) for pattern in _FILES):
                found.update(f"{path.name}\0{sha256_file(path)}\0".encode())
    return found.hexdigest()


class TextEncoder:
    """CLIP's, T5's or another encoder of text with its tokenizer; `length` is the most tokens of a caption it reads."""

    def __init__(self, folder: Path, *, device: torch.device, length: int | None = None) -> None:
        """Errors: DataError for a folder that cannot be loaded."""
        from transformers import AutoTokenizer

        try:
            with silence("transformers"):
                self._model = _load(_parts(folder)[0]).to(device).eval().requires_grad_(False)
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    _parts(folder)[1], local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # of many kinds: safetensors', torch's, transformers', the system's
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"not a text encoder that loads: {reason}", where=folder, hint=WHOLE_FOLDER) from error
        if self._tokenizer.pad_token is None:
            raise DataError("its tokenizer has no padding", where=folder, hint=_ANOTHER)
        longest = self._tokenizer.model_max_length
        longest = min(longest, getattr(self._model.config, "max_position_embeddings", None) or 10**6)
        self.length = min(length or (longest if longest < 10**6 else MAX_TOKENS), longest)
        try:
            self.width = self.embed(["a"], tokens=False).shape[2]
        except Exception as error:  # whatever a model says that is not given all it wants
            reason = f"{type(self._model).__name__} does not read text alone"
            raise DataError(reason, where=folder, hint=_ANOTHER) from error

    def num_cut(self, captions: Sequence[str]) -> int:
        """How many captions have more than `length` tokens."""
        return sum(length > self.length for length in self._lengths(captions))

    def embed(self, captions: Sequence[str], *, tokens: bool) -> torch.Tensor:
        """Captions as float16 embeddings [N, T, width] on the CPU.

        The first embedding is of the whole caption: CLIP's at its last token, else the mean; where `tokens`, those of
        its tokens follow, as many as the longest has, the ones after its end replaced by the first; else T = 1.
        """
        import torch

        longest = min(self.length, max(self._lengths(captions)))
        parts = range(0, len(captions), _AT_ONCE)
        with silence("transformers"):
            told = [self._embed(captions[first : first + _AT_ONCE], longest, tokens=tokens) for first in parts]
        return torch.cat(told)

    def _lengths(self, captions: Sequence[str]) -> list[int]:
        with silence("transformers"):
            return [len(ids) for ids in self._tokenizer(list(captions)).input_ids]

    def _embed(self, captions: Sequence[str], longest: int, *, tokens: bool) -> torch.Tensor:
        import torch

        read: Any = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(next(self._model.parameters()).device)
        with torch.no_grad():
            told = self._model(input_ids=read.input_ids, attention_mask=read.attention_mask)
        each, seen = told.last_hidden_state.float(), read.attention_mask[:, :, None].float()
        whole = (each * seen).sum(1) / seen.sum(1).clamp(min=1)
        if self._model.config.model_type.startswith("clip"):
            whole = told.pooler_output.float()
        whole = whole[:, None]
        found = torch.cat([whole, torch.where(seen > 0, each, whole)], dim=1) if tokens else whole
        return found.half().cpu()


def _load(folder: Path) -> Any:
    """The encoder, none of its weights left at random but those of a pooler, which is not listened to."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as MODELS_OF_TEXT

    kind = read_json(folder / "config.json").get("model_type")
    name = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", **MODELS_OF_TEXT}.get(kind, "AutoModel")
    model, told = getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype="float32", output_loading_info=True
    )
    missing = sorted(key for key in told["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing: {missing[0]}")
    return model


def _parts(folder: Path) -> tuple[Path, Path]:
    """Where the encoder is, and its tokenizer."""
    is_pipeline = (folder / "text_encoder").is_dir()
    return (folder / "text_encoder", folder / "tokenizer") if is_pipeline else (folder, folder)
