"""The device and the precision of networks. Losses and statistics stay in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a forward pass in the dtype of `dtype_of`; a null context for float32."""
    dtype = dtype_of(precision, device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that --precision names; `auto` is bfloat16 on CUDA, else float32."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def place(module: M, device: torch.device) -> M:
    """Move a network to a device; on CUDA in channels-last layout, which its convolutions prefer."""
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module
