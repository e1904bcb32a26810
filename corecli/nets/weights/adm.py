"""Convert the weights of guided-diffusion's U-Net (Dhariwal and Nichol 2021) to the names of ours.

Widths, levels, blocks, attention and classes follow from names and shapes. Three settings do not: the size of the
images, the width of a head, and the order of queries, keys and values. Their defaults are those of the published
checkpoint with the same levels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from corecli.base.errors import DataError, UsageError

Tensors = dict[str, torch.Tensor]

_PUBLISHED_PX = {(1, 2, 2, 2): 32, (1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256}
_HEAD_CHANNELS = 64  # but at 128 px, where every level has 4 heads
_NEW_ORDER_PX = 64
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True, kw_only=True)
class AdmWeights:
    """settings: arguments of `AdmUnet` except dropout and norm groups (32). tensors: its weights.

    labels: class embeddings [classes, width], which are added to the time embedding; None without classes.
    """

    settings: dict[str, Any]
    tensors: Tensors
    labels: torch.Tensor | None


def is_adm(tensors: Tensors) -> bool:
    """Whether these are weights of guided-diffusion's U-Net, or of a variant that `convert` refuses."""
    return {"input_blocks.0.0.weight", "middle_block.1.qkv.weight", "out.2.weight"} <= tensors.keys()


def convert(
    tensors: Tensors,
    *,
    image_size: int | None = None,
    head_channels: int | None = None,
    new_order: bool | None = None,
    where: object,
) -> AdmWeights:
    """Convert a checkpoint. new_order: whether it was trained with `use_new_attention_order`.

    Errors: UsageError if a setting must be given; DataError for a network that `AdmUnet` cannot express.
    """
    _refuse_relatives(tensors, where)
    num_levels, num_res_blocks = _levels(tensors, where)
    firsts = [1 + level * (num_res_blocks + 1) for level in range(num_levels)]  # of the input blocks of each level
    channels, in_channels = tensors["input_blocks.0.0.weight"].shape[:2]
    mult = tuple(tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] / channels for i in firsts)
    if any(m != int(m) for m in mult):
        raise DataError(f"unsupported network: levels of {mult} times {channels} channels", where=where)
    size = image_size or _PUBLISHED_PX.get(tuple(int(m) for m in mult))
    if size is None:
        raise UsageError("the weights do not determine the image size", where=where, hint="give the image size")
    if size == 128 and head_channels is None:
        hint = "if its heads have one width, give head_channels"
        raise UsageError(
            "the published network of 128 px has 4 heads at every level, which is not supported", where=where, hint=hint
        )
    head_channels = head_channels or _HEAD_CHANNELS
    new_order = size == _NEW_ORDER_PX if new_order is None else new_order
    attends = [f"input_blocks.{i}.1.qkv.weight" in tensors for i in firsts]
    names = _names(num_levels, num_res_blocks)
    left_over = sorted(n for n in tensors if n.rpartition(".")[0] not in {*names, "label_emb"})
    if left_over:
        raise DataError(f"{len(left_over)} weights belong to no layer, such as {left_over[0]!r}", where=where)
    settings = {
        "image_size": size,
        "in_channels": in_channels,
        "out_channels": tensors["out.2.weight"].shape[0],
        "channels": channels,
        "channel_mult": tuple(int(m) for m in mult),
        "num_res_blocks": num_res_blocks,
        "attention_resolutions": tuple(size >> level for level, a in enumerate(attends) if a),
        "head_channels": head_channels,
    }
    ours: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer != "label_emb":
            ours |= _renamed(names[layer], part, tensor.float(), head_channels=head_channels, new_order=new_order)
    labels = tensors["label_emb.weight"].float() if "label_emb.weight" in tensors else None
    return AdmWeights(settings=settings, tensors=ours, labels=labels)


def _renamed(ours: str, part: str, tensor: torch.Tensor, *, head_channels: int, new_order: bool) -> Tensors:
    """Return one tensor under our names, without the length-1 axis of attention convolutions."""
    if not ours.endswith(("to_qkv", "to_out.0")):
        return {f"unet.{ours}.{part}": tensor}
    tensor = tensor.flatten(1) if part == "weight" else tensor
    if ours.endswith("to_out.0"):
        return {f"unet.{ours}.{part}": tensor}
    if not new_order:  # q, k and v of a head lie together
        tensor = tensor.unflatten(0, (-1, 3, head_channels)).transpose(0, 1).flatten(0, 2)
    return {f"unet.{ours.removesuffix('qkv')}{n}.{part}": t for n, t in zip("qkv", tensor.chunk(3), strict=True)}


def _names(num_levels: int, num_res_blocks: int) -> dict[str, str]:
    """Return our name for every layer that such a network can have."""
    names = dict(_ENDS)
    theirs = ((f"middle_block.{i}", ours) for i, ours in enumerate(("resnets.0", "attentions.0", "resnets.1")))
    blocks = [(their, f"mid_block.{ours}") for their, ours in theirs]
    for level in range(num_levels):
        for r in range(num_res_blocks + 1):
            into, out = 1 + level * (num_res_blocks + 1) + r, level * (num_res_blocks + 1) + r
            last = r == num_res_blocks
            down, up = f"down_blocks.{level}", f"up_blocks.{level}"
            blocks.append((f"input_blocks.{into}.0", f"{down}.{'downsamplers.0' if last else f'resnets.{r}'}"))
            blocks.append((f"input_blocks.{into}.1", f"{down}.attentions.{r}"))
            blocks.append((f"output_blocks.{out}.0", f"{up}.resnets.{r}"))
            blocks.append((f"output_blocks.{out}.1", f"{up}.attentions.{r}"))
            blocks += [(f"output_blocks.{out}.{i}", f"{up}.upsamplers.0") for i in (1, 2) if last]
    for theirs_, ours in blocks:
        parts = _ATTENTION if "attentions" in ours else _RESNET
        names |= {f"{theirs_}.{part}": f"{ours}.{ours_part}" for part, ours_part in parts.items()}
    return names


def _levels(tensors: Tensors, where: object) -> tuple[int, int]:
    """Return (levels, residual blocks per level), from the blocks that change the size."""
    num_in, num_out = (_count(tensors, blocks) for blocks in ("input_blocks", "output_blocks"))
    ups = (i for i in range(num_out) for j in (1, 2) if f"output_blocks.{i}.{j}.in_layers.0.weight" in tensors)
    per_level = next(ups, num_out - 1) + 1
    if num_out % per_level or num_in != num_out:
        raise DataError(f"{num_in} input and {num_out} output blocks do not form a U-Net", where=where)
    return num_out // per_level, per_level - 1


def _count(tensors: Tensors, blocks: str) -> int:
    return len({n.split(".")[1] for n in tensors if n.startswith(f"{blocks}.")})


def _refuse_relatives(tensors: Tensors, where: object) -> None:
    """Raise DataError for networks with the same names but another function."""
    if any(re.match(r"(input|output)_blocks\.\d+\.\d+\.(op|conv)\.", name) for name in tensors):
        raise DataError("halves images by plain convolutions", where=where, hint="only resblock_updown is supported")
    rows = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    if rows != 2 * tensors["input_blocks.1.0.in_layers.2.weight"].shape[0]:
        raise DataError("its time embedding does not scale", where=where, hint="only use_scale_shift_norm is supported")
