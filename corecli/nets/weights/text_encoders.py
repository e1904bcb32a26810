"""Frozen text encoders of transformers, from a folder or a hub, for the condition of generators."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corecli.base.documents import check, read_json
from corecli.base.errors import WHOLE_FOLDER, DataError, UnavailableError
from corecli.base.files import sha256_file
from corecli.base.schemas import CONFIG, COUNT
from corecli.base.silence import silence
from corecli.base.untrusted import reason_of, refuse_code
from corecli.nets.weights.hub import find_folder
from corecli.nets.weights.pipelines import has_tokenizer

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 128  # default, if the tokenizer has no limit
_FILES = [f"{part}{name}" for part in ("", "*/") for name in ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin")]
_WEIGHTS = (".safetensors", ".bin")
_AT_ONCE = 64
_ANOTHER = "use a text encoder such as CLIP or T5"


def find_text_encoder(place: str) -> Path:
    """Return the folder of a text encoder with its tokenizer, or of a pipeline with both, by path or hub id.

    Errors: MissingInputError, UnavailableError, and those of `check_text_encoder`.
    """
    folder = find_folder(place, patterns=_FILES)
    check_text_encoder(folder)
    return folder


def check_text_encoder(folder: Path) -> None:
    """Check that a text encoder is complete and names no code.

    Errors: DataError naming what is missing; UnavailableError without transformers.
    """
    if find_spec("transformers") is None:
        raise UnavailableError("a text encoder needs transformers", where=folder, hint="pip install 'corecli[text]'")
    refuse_code(folder)
    encoder, tokenizer = _parts(folder)
    if not (encoder / "config.json").is_file():
        raise DataError("not a text encoder of transformers: config.json is missing", where=encoder, hint=WHOLE_FOLDER)
    if not any(path.suffix in _WEIGHTS for path in encoder.iterdir()):
        raise DataError("the weights of the text encoder are missing", where=encoder, hint=WHOLE_FOLDER)
    if not has_tokenizer(tokenizer):
        raise DataError("the tokenizer of the text encoder is missing", where=tokenizer, hint=WHOLE_FOLDER)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the files of a text encoder and its tokenizer."""
    found: Any = hashlib.sha256()
    for part in dict.fromkeys(_parts(folder)):
        for path in sorted(part.iterdir()):
            if any(path.match(pattern) for pattern in _FILES):
                found.update(f"{path.name}\0{sha256_file(path)}\0".encode())
    return found.hexdigest()


class TextEncoder:
    """A text encoder, such as CLIP's or T5's, with its tokenizer; it reads `length` tokens of a caption at most."""

    def __init__(self, folder: Path, *, device: torch.device, length: int | None = None) -> None:
        """Load the encoder in a folder. Errors: DataError if it cannot be loaded."""
        from transformers import AutoTokenizer

        try:
            with silence("transformers"):
                self._model = _load(_parts(folder)[0]).to(device).eval().requires_grad_(False)
                self._tokenizer: Any = AutoTokenizer.from_pretrained(
                    _parts(folder)[1], local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # libraries raise many kinds
            reason = f"the text encoder cannot be loaded: {reason_of(error)}"
            raise DataError(reason, where=folder, hint=WHOLE_FOLDER) from error
        if self._tokenizer.pad_token is None:
            raise DataError("the tokenizer has no padding token", where=folder, hint=_ANOTHER)
        longest = self._tokenizer.model_max_length
        most = check(getattr(self._model.config, "max_position_embeddings", None) or 10**6, COUNT, where=folder)
        longest = min(check(longest, float, where=folder), most)
        self.length = min(length or (longest if longest < 10**6 else MAX_TOKENS), longest)
        try:
            self.width = self.embed(["a"], tokens=False).shape[2]
        except Exception as error:  # models raise many kinds if an input is missing
            reason = f"{type(self._model).__name__} needs other inputs besides text"
            raise DataError(reason, where=folder, hint=_ANOTHER) from error

    def num_cut(self, captions: Sequence[str]) -> int:
        """Return how many captions have more than `length` tokens."""
        return sum(length > self.length for length in self._lengths(captions))

    def embed(self, captions: Sequence[str], *, tokens: bool) -> torch.Tensor:
        """Return float16 embeddings of captions on the CPU, [N, T, width].

        The first embedding is that of the whole caption: CLIP's at its last token, else the mean. With `tokens`, the
        embeddings of the tokens follow, up to the longest caption; after the end of a caption they repeat the first.
        Without, T = 1.
        """
        import torch

        longest = min(self.length, max(self._lengths(captions)))
        parts = range(0, len(captions), _AT_ONCE)
        with silence("transformers"):
            found = [self._embed(captions[first : first + _AT_ONCE], longest, tokens=tokens) for first in parts]
        return torch.cat(found)

    def _lengths(self, captions: Sequence[str]) -> list[int]:
        with silence("transformers"):
            return [len(ids) for ids in self._tokenizer(list(captions)).input_ids]

    def _embed(self, captions: Sequence[str], longest: int, *, tokens: bool) -> torch.Tensor:
        import torch

        read: Any = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(next(self._model.parameters()).device)
        with torch.no_grad():
            output = self._model(input_ids=read.input_ids, attention_mask=read.attention_mask)
        each, seen = output.last_hidden_state.float(), read.attention_mask[:, :, None].float()
        whole = (each * seen).sum(1) / seen.sum(1).clamp(min=1)
        if self._model.config.model_type.startswith("clip"):
            whole = output.pooler_output.float()
        whole = whole[:, None]
        found = torch.cat([whole, torch.where(seen > 0, each, whole)], dim=1) if tokens else whole
        return found.half().cpu()


def _load(folder: Path) -> Any:
    """Return the encoder. Errors: ValueError for missing weights, except those of a pooler, which is not used."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as MODELS_OF_TEXT

    kind = read_json(folder / "config.json", CONFIG, any_integer=True).get("model_type")
    name = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", **MODELS_OF_TEXT}.get(kind, "AutoModel")
    model, report = getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, dtype="float32", output_loading_info=True
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing: {missing[0]}")
    return model


def _parts(folder: Path) -> tuple[Path, Path]:
    """Return the folders of the encoder and of the tokenizer."""
    is_pipeline = (folder / "text_encoder").is_dir()
    return (folder / "text_encoder", folder / "tokenizer") if is_pipeline else (folder, folder)
