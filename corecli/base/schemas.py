"""The shapes of all JSON that corecli reads, in the notation of `base.documents`."""

from __future__ import annotations

import math
import re
from typing import Any

from corecli.base.documents import Rule, Schema, one_of


def is_share(value: Any) -> bool:
    """Whether a value is K/N with 1 <= K <= N."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value) if isinstance(value, str) else None
    return found is not None and 1 <= int(found[1]) <= int(found[2])


def _is_setting(value: Any, most: int) -> bool:
    """Whether a value is a text, a truth value or a number of at most this size."""
    return isinstance(value, str | bool) or (isinstance(value, int | float) and abs(value) <= most)


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _is_relative(folder: str) -> bool:
    return not folder or all(piece and not piece.startswith(".") for piece in folder.split("/"))


COUNT = Rule(int, lambda n: 0 <= n < 1 << 62, "an integer of at least 0")
POSITIVE = Rule(int, lambda n: 0 < n < 1 << 62, "a positive integer")
SIDE = Rule(int, lambda n: 0 < n <= 1 << 16, "an image size in pixels, at most 65536")
LABEL = Rule(int, lambda n: -1 <= n < 1 << 62, "a class number, or -1")
REPEAT = Rule(float, lambda n: 0 < n < 1e9, "a number above 0")
FRACTION = Rule(float, lambda n: 0 < n <= 1, "a number in 0..1")
SHARE = Rule(str, is_share, "K/N with 1 <= K <= N, such as 2/5")
PREFIX = Rule(str, _is_relative, 'a relative path, such as "round1"')
FILE_NAME = Rule(str, _is_file_name, "the name of a file in the same folder")
THREE = Rule(list, lambda v: len(v) == 3 and all(type(n) in (int, float) and math.isfinite(n) for n in v), "3 numbers")

PART = {
    "set": str,
    "repeat?": REPEAT,
    "fraction?": (FRACTION, None),
    "per_class?": (POSITIVE, None),
    "first?": (POSITIVE, None),
    "share?": (SHARE, None),
    "seed?": int,
    "origin?": (one_of("real", "synthetic"), None),
    "prefix?": PREFIX,
}
MIXTURE = {
    "parts": [PART],
    "format?": POSITIVE,
    "order?": one_of("union", "sequential"),
    "guard?": bool,
    "missing?": one_of("fail", "drop", "self"),
    "round?": (int, None),
    "identity?": (dict, None),
    "config?": (dict, None),
}

EMPTY_SHARD = {"num": Rule(int, lambda n: n == 0, "0")}
SHARD = (EMPTY_SHARD, {"num": POSITIVE, "file": FILE_NAME, "bytes": POSITIVE, "sha256?": str})
SHARDS = {"class_names": [str], "shards": [SHARD]}
SHARDS_STARTED = {"shards?": POSITIVE}  # shards.json
MANIFEST = {
    "num?": COUNT,
    "keys_sha256?": str,
    "class_names?": ([str], None),
    "identity?": (dict, None),
    "rows?": (
        {
            "groups?": ([str], None),
            "labels?": (LABEL, [LABEL]),
            "origins?": (COUNT, [COUNT]),
            "variants?": (COUNT, [COUNT]),
            "similarity?": ([float], None),
        },
        None,
    ),
}

PREPROCESSING = {"mean": THREE, "std": THREE, "image_size": (SIDE, None), "interpolation": str}
_WIDTH = Rule(int, lambda n: 0 < n <= 1 << 20, "a width of at most 1048576")
PROJECTOR = {
    "hidden": _WIDTH,
    "dim": _WIDTH,
    "norm": str,
    "layers?": Rule(int, lambda n: 0 < n <= 16, "a number of layers, at most 16"),
    "bias?": bool,
    "last_norm?": str,
    "activation?": str,
}
ENCODER = {
    "backbone": str,
    "stem": (str, None),
    "projector": (PROJECTOR, None),
    "preprocessing": PREPROCESSING,
    "drop_path?": float,
}

# Settings of networks are bounded, since a network is built before its weights can be compared.
_MOST = 1 << 24
_LONGEST_LIST = 1 << 12
_NUMBER = Rule(float, lambda n: -_MOST <= n <= _MOST, f"a number of at most {_MOST}")
_LIST = Rule(list, lambda v: len(v) <= _LONGEST_LIST and all(_is_setting(n, _MOST) for n in v), "a list of settings")
_BLOCKS = Rule(int, lambda n: 0 <= n <= 64, "a number of blocks, at most 64")
_LEVELS = Rule(list, lambda v: len(v) <= 16 and all(_is_setting(n, 1 << 14) for n in v), "a list of at most 16 levels")
_BLOCKS_OF_LEVELS = Rule(
    list, lambda v: len(v) <= 16 and all(_is_setting(n, 64) for n in v), "at most 64 blocks a level"
)
_SETTINGS = {
    "layers_per_block?": _BLOCKS,
    "num_res_blocks?": _BLOCKS,
    "attention_levels?": _BLOCKS,
    "num_encoder_blocks?": _BLOCKS_OF_LEVELS,
    "num_decoder_blocks?": _BLOCKS_OF_LEVELS,
    "block_out_channels?": _LEVELS,
    "down_block_types?": _LEVELS,
    "up_block_types?": _LEVELS,
    "channel_mult?": (_LEVELS, None),
    "discriminator_mult?": (_LEVELS, None),
    "image_size?": SIDE,
    "objective?": str,
    "*": (_NUMBER, bool, str, None, _LIST),
}
STAGE = {"kind": str, "config": _SETTINGS, "measured?": bool}
CONDITION = {
    "kind": one_of("none", "features", "labels", "captions"),
    "encoder?": (str, None),
    "layer?": (str, None),
    "text_encoder?": (str, None),
    "fingerprint?": (str, None),
}
GENERATOR = {
    "arch": str,
    "generator": {**_SETTINGS, "first_stage?": (STAGE, None)},
    "condition?": CONDITION,
    "class_names?": [str],
}
SAMPLED = {"condition": CONDITION, "class_names": [str]}  # what `sample` needs of it

# The header of a file written by `base.checkpoint.save`, without tensors: first what all kinds have.
HEADER = {
    "kind": str,
    "format": POSITIVE,
    "fingerprint": str,
    "identity?": (dict, None),
    "class_names?": ([str], None),
    "rows?": {"num_groups?": COUNT, "fingerprint?": str},
}
HEADERS: dict[str, Schema] = {
    "encoder": {"spec": ENCODER, "names?": str},
    "generator": GENERATOR,
    "generator-folder": {"generator": GENERATOR},
    "features": {"encoder?": (str, None), "layer?": (str, None), "space?": (str, None)},
    "latents": {"images": str, "first_stage": str, "mirrored": bool},
    "ema": {"step": COUNT, "lengths": [Rule(float, lambda n: 0 < n <= 0.25, "a length in 0..0.25")]},
    "state": {"step?": COUNT},
}

IMAGES = {"class_names?": ([str], None), "identity?": (dict, None)}  # in an .npz

_OFFSETS = Rule(list, lambda v: len(v) == 2 and all(type(n) is int for n in v) and 0 <= v[0] <= v[1], "[begin, end]")
_METADATA = {"*": str}
TENSOR = {"dtype": str, "shape": [COUNT], "data_offsets": _OFFSETS}
SAFETENSORS = {"__metadata__?": (_METADATA, None), "*": TENSOR}

IDENTITY = dict  # run.json and shards.json, which are compared field by field
LOG_LINE = {"step": float}  # log.jsonl
REPORT = {"sha256?": str}
CONFIG = {  # of the models of diffusers and transformers
    "_class_name?": str,
    "model_type?": (str, None),
    "tokenizer_class?": (str, None),
    "sample_size?": (SIDE, [SIDE], None),
}
WEIGHT_MAP = {"weight_map?": {"*": FILE_NAME}}

_MESSAGE = {"message": str}
SERVER_ERROR = ({"error": (_MESSAGE, str)}, _MESSAGE)
_TEXT, _CHAT = {"text": (str, None), "message?": None}, {"message": {"content": (str, None)}}
SERVER_ANSWER = {"choices": [(_TEXT, _CHAT)]}
