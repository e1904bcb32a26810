"""BatchNorm with the statistics of the global batch.

On CUDA this is torch's own module. torch has none for the CPU, where `ExactSyncBatchNorm` is used.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from corecli.base.errors import UsageError

M = TypeVar("M", bound=nn.Module)


def synchronize_batchnorm(module: M, device: torch.device) -> M:
    """Return `module` with each BatchNorm replaced by one that uses the statistics of the global batch.

    Parameters, buffers and their names are kept. Outside a process group, the module is returned unchanged.
    Errors: UsageError for a BatchNorm that does more, such as timm's BatchNormAct2d.
    """
    if not dist.is_initialized():
        return module
    if device.type == "cuda":
        return cast(M, nn.SyncBatchNorm.convert_sync_batchnorm(module))
    if isinstance(module, ExactSyncBatchNorm):
        return module
    if isinstance(module, _BatchNorm):
        return cast(M, _replaced(module))
    for name, child in module.named_children():
        module.add_module(name, synchronize_batchnorm(child, device))
    return module


class ExactSyncBatchNorm(_BatchNorm):
    """BatchNorm of [B, C, ...] over equal batches of all ranks, by two sums; the backward is the exact adjoint."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, ...] with the statistics of the global batch in training, else with the running ones."""
        if not self.training:
            return super().forward(input)
        x = input
        axes = [i for i in range(x.ndim) if i != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        num_values = x.numel() // x.shape[1] * dist.get_world_size()
        wide = x if x.dtype == torch.float64 else x.float()
        mean = _sum_with_gradient(wide.sum(axes)) / num_values
        centered = wide - mean.view(shape)
        variance = _sum_with_gradient(centered.square().sum(axes)) / num_values
        self._track(mean, variance * num_values / max(1, num_values - 1))
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), self.momentum)


class _Sum(torch.autograd.Function):
    """Sum over ranks; the backward pass is its adjoint, again a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_with_gradient(x: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(x))


def _replaced(norm: _BatchNorm) -> nn.Module:
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d) or not norm.track_running_stats:
        raise UsageError(f"{type(norm).__name__} cannot be synchronized on the CPU", hint="use one process, or CUDA")
    new = ExactSyncBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    new.train(norm.training)
    return new
