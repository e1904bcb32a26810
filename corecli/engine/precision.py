"""Where networks live and which arithmetic they run in; losses and statistics stay float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass: bfloat16 where asked for, or for `auto` on CUDA, else float32 as it is."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def place(module: M, device: torch.device) -> M:
    """Move a network to its device, on CUDA with channels last, which its convolutions prefer."""
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module
