"""ResNet checkpoints of other tools, recognised by their content: torchvision, solo-learn, lightly, MoCo and their kin.

The prefix is stripped, the depth told by the blocks, the stem by the first convolution. Projectors and classifiers are
dropped knowingly; any other name that is left over is an error, since a silently ignored weight is a wrong encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from corecli.base.errors import DataError
from corecli.nets.backbones import Stem

Tensors = dict[str, torch.Tensor]

_HEADS = re.compile(
    r"(fc|heads?|classifier|linear|last_linear|projector|projection_head|predictor|prediction_head|prototypes)(\.|$)"
)
# Where a file holds several networks, the one its authors evaluate: not BYOL's and MoCo's averaged copies, but DINO's.
_NOT_EVALUATED = re.compile(r"momentum|encoder_k|target|ema|student")
_DEPTHS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (1, 1, 1, 1)): "resnet10-tiny",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A recognised backbone: its name, its stem, and its weights under torchvision's names."""

    backbone: str
    stem: Stem
    tensors: Tensors


def recognise(tensors: Tensors, *, where: object) -> Foreign:
    """Find the one ResNet in the flattened `tensors` of a file.

    Errors: DataError when there is none, several, or one with names that are neither a ResNet's nor a head's.
    """
    prefix, weights = _find_backbone(tensors, where)
    kept = _with_counters({name: value for name, value in weights.items() if not _HEADS.match(name)})
    backbone = _tell_depth(kept, where)
    return Foreign(backbone=backbone, stem=_tell_stem(kept, tensors, prefix), tensors=kept)


def strip_prefix(tensors: Tensors, wanted: Iterable[str], *, where: object) -> Tensors:
    """The weights whose names are `wanted`, under whatever common prefix the file has, less its classifier.

    Errors: DataError naming weights that are missing or left over.
    """
    wanted = set(wanted)
    first = min(wanted)
    prefixes = {n.removesuffix(first) for n in tensors if n == first or n.endswith(f".{first}")}
    whole = [p for p in prefixes if all(p + name in tensors for name in wanted)]
    prefix = _choose(whole, where) if whole else min(prefixes, key=len, default="")
    found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    found = {n: t for n, t in found.items() if n in wanted or not _HEADS.match(n)}
    check_names(found, wanted, where=where)
    return found


def check_names(found: Iterable[str], wanted: Iterable[str], *, where: object) -> None:
    """Refuse weights that do not match the model's, naming the first. Errors: DataError."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise DataError(f"{len(missing)} weights are missing, such as {missing[0]!r}", where=where)
    if extra:
        raise DataError(f"{len(extra)} weights belong to no layer, such as {extra[0]!r}", where=where)


def _find_backbone(tensors: Tensors, where: object) -> tuple[str, Tensors]:
    """(prefix, weights under torchvision's names) of the network to evaluate."""
    prefixes = sorted({_prefix(name) for name, t in tensors.items() if _is_first_convolution(name, t, tensors)})
    if not prefixes:
        hint = "for a timm model, a ViT among them, write timm:NAME:FILE"
        raise DataError("no ResNet backbone found among its weights", where=where, hint=hint)
    prefix = _choose(prefixes, where)
    weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return prefix, _with_torchvision_names(weights)


def _choose(prefixes: list[str], where: object) -> str:
    kept = [p for p in prefixes if not _NOT_EVALUATED.search(p)] or prefixes
    if len(kept) > 1:
        names = ", ".join(repr(p) for p in sorted(kept))
        raise DataError(f"holds several backbones, under {names}", where=where, hint="keep one of them in the file")
    return kept[0]


def _is_first_convolution(name: str, tensor: torch.Tensor, tensors: Tensors) -> bool:
    """Named `conv1.weight`, or `0.weight` in a Sequential, with three input channels, and beside a residual block."""
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not re.search(r"(^|\.)(conv1|0)\.weight$", name):
        return False
    prefix = _prefix(name)
    return any(f"{prefix}{block}.0.conv1.weight" in tensors for block in ("layer1", "2", "4"))


def _prefix(name: str) -> str:
    return re.sub(r"(conv1|0)\.weight$", "", name)


def _with_torchvision_names(weights: Tensors) -> Tensors:
    """`0, 1, 4, 5, 6, 7` of a Sequential of a ResNet's children become `conv1, bn1, layer1, ...`.

    In lightly's own ResNet the stages are 2 to 5, as relu and pooling are no children, and `downsample` is `shortcut`.
    """
    if "conv1.weight" not in weights:
        indices = sorted({int(n.split(".")[0]) for n in weights if n.split(".")[0].isdigit()})
        names = dict(zip(map(str, indices), ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=False))
        weights = {".".join((names.get(head, head), *rest)): t for (head, *rest), t in _split(weights)}
    return {re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", n): t for n, t in weights.items()}


def _with_counters(weights: Tensors) -> Tensors:
    """Files older than torch 0.4.1 lack BatchNorm's `num_batches_tracked`, which affects no result."""
    norms = [n.removesuffix("running_var") for n in weights if n.endswith("running_var")]
    return {**{f"{n}num_batches_tracked": torch.tensor(0) for n in norms}, **weights}


def _split(weights: Tensors) -> list[tuple[list[str], torch.Tensor]]:
    return [(name.split("."), tensor) for name, tensor in weights.items()]


def _tell_depth(weights: Tensors, where: object) -> str:
    blocks = [len({n.split(".")[1] for n in weights if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    name = _DEPTHS.get((kind, tuple(blocks)))
    if name is None:
        raise DataError(f"a ResNet of {kind} blocks {blocks} is none that is known", where=where)
    return name


def _tell_stem(weights: Tensors, tensors: Tensors, prefix: str) -> Stem:
    """A 7x7 kernel is ImageNet's, a 3x3 one for small images, where two tools have ways of their own.

    lightly's Sequential of its own ResNet's children loses the functional ReLU before the first stage; solo-learn, told
    by its online classifier, pads by 2 and not by 1.
    """
    if weights["conv1.weight"].shape[-1] != 3:
        return "imagenet"
    if f"{prefix}2.0.conv1.weight" in tensors:
        return "cifar-lightly"
    root, parent, _ = prefix.rpartition("backbone.") if "backbone." in prefix else prefix.rpartition("encoder.")
    return "cifar-solo" if parent and f"{root}classifier.weight" in tensors else "cifar"
