"""Read ResNets under the names of torchvision, timm, solo-learn, lightly, MoCo and similar tools.

The depth follows from the number of blocks, the stem from the first convolution.
"""

from __future__ import annotations

import re

import torch

from corecli.base.errors import DataError
from corecli.nets.backbones import Stem
from corecli.nets.weights.encoders.names import Foreign, Tensors, under, without_heads

_IMAGENET_PX = 224
_DEPTHS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (1, 1, 1, 1)): "resnet10-tiny",
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
}


def prefixes(tensors: Tensors) -> set[str]:
    """Return the prefixes of all ResNets."""
    return {_prefix(name) for name, t in tensors.items() if _is_first_convolution(name, t, tensors)}


def read(tensors: Tensors, prefix: str, *, where: object) -> Foreign:
    """Return the ResNet under a prefix, with torchvision's names. Errors: DataError for an unknown depth."""
    kept = _with_counters(without_heads(_with_torchvision_names(under(prefix, tensors))))
    stem = _stem(kept, tensors, prefix)
    return Foreign(
        backbone=_depth(kept, where),
        stem=stem,
        image_size=_IMAGENET_PX if stem == "imagenet" else None,
        tensors=kept,
    )


def _is_first_convolution(name: str, tensor: torch.Tensor, tensors: Tensors) -> bool:
    """Whether a weight is the first of a ResNet: `conv1` or `0` with three input channels, beside a residual block."""
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not re.search(r"(^|\.)(conv1|0)\.weight$", name):
        return False
    prefix = _prefix(name)
    return any(f"{prefix}{block}.0.conv1.weight" in tensors for block in ("layer1", "2", "4"))


def _prefix(name: str) -> str:
    return re.sub(r"(conv1|0)\.weight$", "", name)


def _with_torchvision_names(weights: Tensors) -> Tensors:
    """Rename the children 0, 1, 4, 5, 6, 7 of a Sequential to conv1, bn1, layer1, ...

    In lightly's own ResNet the stages are 2 to 5, because relu and pooling are no children, and `downsample` is called
    `shortcut`.
    """
    if "conv1.weight" not in weights:
        indices = sorted({int(n.split(".")[0]) for n in weights if n.split(".")[0].isdigit()})
        names = dict(zip(map(str, indices), ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=False))
        weights = {".".join((names.get(head, head), *rest)): t for (head, *rest), t in _split(weights)}
    return {re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", n): t for n, t in weights.items()}


def _with_counters(weights: Tensors) -> Tensors:
    """Add BatchNorm's `num_batches_tracked`, which files older than torch 0.4.1 do not have; it changes no result."""
    norms = [n.removesuffix("running_var") for n in weights if n.endswith("running_var")]
    return {**{f"{n}num_batches_tracked": torch.tensor(0) for n in norms}, **weights}


def _split(weights: Tensors) -> list[tuple[list[str], torch.Tensor]]:
    return [(name.split("."), tensor) for name, tensor in weights.items()]


def _depth(weights: Tensors, where: object) -> str:
    blocks = [len({n.split(".")[1] for n in weights if n.startswith(f"layer{i}.")}) for i in (1, 2, 3, 4)]
    kind = "bottleneck" if "layer1.0.conv3.weight" in weights else "basic"
    name = _DEPTHS.get((kind, tuple(blocks)))
    if name is None:
        raise DataError(f"unknown ResNet: stages of {blocks} {kind} blocks", where=where)
    return name


def _stem(weights: Tensors, tensors: Tensors, prefix: str) -> Stem:
    """Return the stem: imagenet for a 7x7 kernel, else one of the three for small images.

    lightly's Sequential loses the functional ReLU before the first stage. solo-learn, which is recognized by its online
    classifier, pads by 2 in place of 1.
    """
    if weights["conv1.weight"].shape[-1] != 3:
        return "imagenet"
    if f"{prefix}2.0.conv1.weight" in tensors:
        return "cifar-lightly"
    root, parent, _ = prefix.rpartition("backbone.") if "backbone." in prefix else prefix.rpartition("encoder.")
    return "cifar-solo" if parent and f"{root}classifier.weight" in tensors else "cifar"
