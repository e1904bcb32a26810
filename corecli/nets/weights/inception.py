"""Load weights of the FID Inception network from common files, recognized by content and never downloaded."""

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
    """Return the network with weights from a public file, folded and channels-last, on the CPU.

    Supported contents, as .pth or .safetensors: the state dict with torchvision's names from pytorch-fid and
    torch-fidelity, and the state dict (`layers.*`) of NVIDIA's TorchScript file.
    Errors: UnavailableError if the file does not exist, DataError for other content.
    """
    try:
        tensors = checkpoint.load_tensors(Path(path))
    except MissingInputError as error:
        hint = f"download {' or '.join(PUBLIC_FILES)} and give its path"
        raise UnavailableError("Inception weights not found", where=path, hint=hint) from error
    except DataError as error:
        hint = "pickles and TorchScript are not loaded; save the state_dict() with torch.save"
        raise DataError(error.reason, where=path, hint=hint) from error
    weights = canonical_weights(tensors, where=path)
    net = FidInception()
    net.load_state_dict(weights, strict=False)  # only the batch counters of BatchNorm are missing
    net.fingerprint = checkpoint.fingerprint(weights)
    return net.fold().to(memory_format=torch.channels_last)


def canonical_weights(tensors: dict[str, Tensor], *, where: object = None) -> dict[str, Tensor]:
    """Return tensors under torchvision's names in float32, without the batch counters of BatchNorm.

    Errors: DataError unless they are the weights of the FID network; ImageNet's Inception-v3 has its own message.
    """
    tensors = _plain_names(tensors)
    if any(name.startswith("AuxLogits.") for name in tensors) or len(tensors.get("fc.bias", ())) == 1000:
        hint = f"its scores are not FID; use {PUBLIC_FILES[0]}"
        raise DataError("torchvision's Inception-v3 for ImageNet, not the FID network", where=where, hint=hint)
    if any(name.startswith("layers.") for name in tensors):
        tensors = _from_nvidia(tensors)
    with torch.device("meta"):
        expected = _plain_names(FidInception().state_dict())
    matching = [n for n, t in expected.items() if n in tensors and tensors[n].shape == t.shape]
    if not len(matching) == len(expected) == len(tensors):
        reason = f"not the FID Inception network: {len(matching)} of {len(expected)} tensors match"
        raise DataError(reason, where=where, hint=f"use {PUBLIC_FILES[0]}")
    return {name: tensors[name].float() for name in expected}


def nvidia_names() -> dict[str, str]:
    """Return NVIDIA's module path of each convolution (TensorFlow's, with dots) by torchvision's name."""
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
    """Drop batch counters and any prefix of the names, such as `state_dict.` or `module.`."""
    tensors = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    firsts = ("Conv2d_1a_3x3.conv.weight", "layers.conv.weight")
    prefix = next((n.removesuffix(f) for f in firsts for n in tensors if n.endswith(f)), "")
    return {name.removeprefix(prefix): t for name, t in tensors.items()}


def _from_nvidia(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename NVIDIA's tensors, whose paths use dots or underscores; a missing gamma is 1."""
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
