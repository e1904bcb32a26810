"""Names of weights, shared by all families: prefixes, heads, and checks that names match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from corecli.base.errors import DataError
from corecli.nets.backbones import Stem

Tensors = dict[str, torch.Tensor]

# If a file has several networks, the one its authors evaluate is read: online for BYOL and MoCo, the teacher for DINO.
_NOT_EVALUATED = re.compile(r"momentum|encoder_k|target|student|(^|[._])ema([._]|$)")
_HEADS = re.compile(
    r"(fc|heads?|classifier|linear|last_linear|projector|projection_head|predictor|prediction_head|prototypes)(\.|$)"
)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A recognized backbone: its name, its stem, the size of its images, and its weights under our names."""

    backbone: str
    stem: Stem | None
    image_size: int | None
    tensors: Tensors


def choose(prefixes: list[str], tensors: Tensors, *, where: object) -> str:
    """Return the prefix of the network to evaluate. Errors: DataError if several networks differ."""
    kept = sorted([p for p in prefixes if not _NOT_EVALUATED.search(p)] or prefixes)
    first = under(kept[0], tensors)
    if not all(_are_equal(first, under(p, tensors)) for p in kept[1:]):
        names = ", ".join(map(repr, kept))
        raise DataError(f"holds several backbones, under {names}", where=where, hint="keep one of them in the file")
    return kept[0]


def under(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose names start with `prefix`, and remove it from their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def without_heads(weights: Tensors) -> Tensors:
    """Return the weights that belong to no projector, predictor or classifier."""
    return {name: tensor for name, tensor in weights.items() if not _HEADS.match(name)}


def strip_prefix(tensors: Tensors, wanted: Iterable[str], *, where: object) -> Tensors:
    """Return the weights with the names `wanted`, without their common prefix in the file; classifiers are dropped.

    Errors: DataError that names missing or unknown weights.
    """
    wanted = set(wanted)
    first = min(wanted)
    prefixes = {n.removesuffix(first) for n in tensors if n == first or n.endswith(f".{first}")}
    whole = [p for p in prefixes if all(p + name in tensors for name in wanted)]
    prefix = choose(whole, tensors, where=where) if whole else min(prefixes, key=len, default="")
    found = under(prefix, tensors)
    found = {n: t for n, t in found.items() if n in wanted or not _HEADS.match(n)}
    check_names(found, wanted, where=where)
    return found


def check_weights(tensors: Tensors, shapes: Mapping[str, torch.Size], *, where: object) -> None:
    """Raise DataError if the names or shapes of weights do not match the model's, with the first such name."""
    check_names(tensors, shapes, where=where)
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            reason = f"weight {name!r} has shape {tuple(tensor.shape)}, not {tuple(shapes[name])}"
            raise DataError(reason, where=where)


def check_names(found: Iterable[str], wanted: Iterable[str], *, where: object) -> None:
    """Raise DataError if the names of weights do not match the model's, with the first such name."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise DataError(f"{len(missing)} weights are missing, such as {missing[0]!r}", where=where)
    if extra:
        raise DataError(f"{len(extra)} weights belong to no layer, such as {extra[0]!r}", where=where)


def _are_equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
