"""Text encoders with tiny random weights and tokenizers of a few words, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pipelines
import torch

TOKENS = 12  # the longest caption, its marks included
WIDTH = 16
_WORDS = ("a", "the", "digit", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_bert(folder: Path) -> None:
    """Write a BERT without a pooler; its tokenizer adds start and end tokens."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = _tokenizer("[PAD]", "[UNK]", "[CLS]", "[SEP]", form="[CLS] $A [SEP]", model_max_length=TOKENS)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **_SIZES)
    _save(folder, BertForMaskedLM, config, tokenizer)


def write_t5(folder: Path) -> None:
    """Write the encoder of a T5, which has no maximum length; its tokenizer adds an end token."""
    from transformers import T5EncoderModel

    _save_t5(folder, T5EncoderModel)


def write_whole_t5(folder: Path) -> None:
    """Write a T5 with a decoder, which is not used."""
    from transformers import T5ForConditionalGeneration

    _save_t5(folder, T5ForConditionalGeneration)


def write_mt5(folder: Path) -> None:
    """Write the encoder of an mT5."""
    from transformers import MT5Config, MT5EncoderModel

    tokenizer = _t5_tokenizer()
    _save(folder, MT5EncoderModel, MT5Config(**_t5_sizes(len(tokenizer))), tokenizer)


def write_vit(folder: Path) -> None:
    """Write an image encoder beside a tokenizer."""
    from transformers import ViTConfig, ViTModel

    _save(folder, ViTModel, ViTConfig(image_size=32, **_SIZES), _t5_tokenizer())


WRITERS: dict[str, Callable[[Path], None]] = {
    "clip": pipelines.write_clip_text,
    "bert": write_bert,
    "t5": write_t5,
    "whole-t5": write_whole_t5,
    "mt5": write_mt5,
}


def _save_t5(folder: Path, kind: Any) -> None:
    from transformers import T5Config

    tokenizer = _t5_tokenizer()
    _save(folder, kind, T5Config(**_t5_sizes(len(tokenizer))), tokenizer)


def _t5_sizes(num_words: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"vocab_size": num_words, "d_model": WIDTH, "d_kv": 8, "d_ff": WIDTH}
    return {**sizes, "num_layers": 1, "num_heads": 2}


def _t5_tokenizer() -> Any:
    return _tokenizer("<pad>", "<unk>", "</s>", form="$A </s>", eos_token="</s>")


def _save(folder: Path, kind: Any, config: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(pad: str, unknown: str, *others: str, form: str, **more: Any) -> Any:
    """Return a tokenizer of whole words with one token for unknown words; `form` is the template of a caption $A."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    number = {word: i for i, word in enumerate((pad, unknown, *others, *_WORDS))}
    words = Tokenizer(models.WordLevel(number, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(word, number[word]) for word in others]
    words.post_processor = processors.TemplateProcessing(single=form, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, unk_token=unknown, **more)
