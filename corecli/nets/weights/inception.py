"""Weights of the FID Inception network, from any of the files people have; recognized by content, never downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from corecli.base import checkpoint
from corecli.base.errors import DataError, MissingInputError, UnavailableError
from corecli.nets.inception import BLOCKS, STEM, Branch, Conv, FidInception

PUBLIC_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")

_NVIDIA_LEAVES = {
    "bn.weight": ("gamma", "scale"),
    "bn.bias": ("beta", "bias", "shift"),
    "bn.running_mean": ("mean", "running_mean", "moving_mean"),
    "bn.running_var": ("var", "running_var", "moving_variance", "variance"),
}


def load_inception(path: Path | str) -> FidInception:
    """The network with weights from a public file, folded and channels-last, on the CPU.

    Accepted by content, as .pth or .safetensors: the torchvision-named state dict that pytorch-fid and torch-fidelity
    publish, and the state dict (`layers.*`) of NVIDIA's TorchScript file.
    Errors: UnavailableError when there is no such file, DataError for other content.
    """
    try:
        tensors = checkpoint.load_tensors(Path(path))
    except MissingInputError as error:
        hint = f"fetch {' or '.join(PUBLIC_FILES)} once and name its path"
        raise UnavailableError("no Inception weights here", where=path, hint=hint) from error
    except DataError as error:
        hint = "pickles and TorchScript are not run; torch.save the network's state_dict() and name that file"
        raise DataError(error.reason, where=path, hint=hint) from error
    weights = canonical_weights(tensors, where=path)
    net = FidInception()
    net.load_state_dict(weights, strict=False)  # only BatchNorm's batch counters are absent
    net.fingerprint = checkpoint.fingerprint(weights)
    return net.fold().to(memory_format=torch.channels_last)


def canonical_weights(tensors: dict[str, Tensor], *, where: object = None) -> dict[str, Tensor]:
    """Foreign tensors under torchvision's names in float32, without BatchNorm's batch counters.

    Errors: DataError for anything but the FID network's weights, ImageNet's Inception-v3 in particular.
    """
    tensors = _plain_names(tensors)
    if any(name.startswith("AuxLogits.") for name in tensors) or len(tensors.get("fc.bias", ())) == 1000:
        hint = f"its scores would be no FID; use {PUBLIC_FILES[0]}"
        raise DataError("ImageNet's Inception-v3 of torchvision, not the FID network", where=where, hint=hint)
    if any(name.startswith("layers.") for name in tensors):
        tensors = _from_nvidia(tensors)
    with torch.device("meta"):
        expected = _plain_names(FidInception().state_dict())
    matching = [n for n, t in expected.items() if n in tensors and tensors[n].shape == t.shape]
    if not len(matching) == len(expected) == len(tensors):
        reason = f"not the FID Inception network: {len(matching)} of its {len(expected)} tensors are here"
        raise DataError(reason, where=where, hint=f"use {PUBLIC_FILES[0]}")
    return {name: tensors[name].float() for name in expected}


def nvidia_names() -> dict[str, str]:
    """NVIDIA's module path (the TensorFlow graph's, with dots) of every convolution, by torchvision's."""
    names = {ours: f"layers.{_numbered('conv', i)}" for i, ours in enumerate(STEM)}
    for i, (block, (_, branches)) in enumerate(BLOCKS.items()):
        towers = 0
        for branch in branches:
            alone = len(branch.steps) == 1 and branch.pool is None
            tower = "" if alone else f"{_numbered('tower', towers)}."
            towers += not alone
            for ours, theirs in _branch_names(branch).items():
                names[f"{block}.{ours}"] = f"layers.{_numbered('mixed', i)}.{tower}{theirs}"
    return names


def _branch_names(branch: Branch) -> dict[str, str]:
    names = {}
    for i, step in enumerate(branch.steps):
        if isinstance(step, Conv):
            names[step.name] = _numbered("conv", i)
        else:
            names.update({conv.name: f"mixed.{_numbered('conv', k)}" for k, conv in enumerate(step)})
    return names


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


def _plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the batch counters and what stands before the first layer's name, such as `state_dict.` or `module.`."""
    tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    firsts = ("Conv2d_1a_3x3.conv.weight", "layers.conv.weight")
    prefix = next((n.removesuffix(f) for f in firsts for n in tensors if n.endswith(f)), "")
    return {name.removeprefix(prefix): t for name, t in tensors.items()}


def _from_nvidia(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename NVIDIA's tensors, whose path joins nested towers by dots or underscores; gamma is 1 where it is absent."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        modules.setdefault(path.replace(".", "_"), {})[leaf] = tensor
    found = {f"fc.{leaf}": tensor for leaf, tensor in modules.get("output", {}).items()}
    for ours, theirs in nvidia_names().items():
        for leaf, tensor in modules.get(theirs.replace(".", "_"), {}).items():
            if tensor.ndim == 4:
                found[f"{ours}.conv.weight"] = tensor
                found.setdefault(f"{ours}.bn.weight", torch.ones(len(tensor)))
            found.update({f"{ours}.{role}": tensor for role, names in _NVIDIA_LEAVES.items() if leaf in names})
    return found
