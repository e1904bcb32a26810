"""Optimizers by name, and their state as flat named tensors."""
# torch's own optimizers are built on these _foreach functions, which have no public names.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any, overload

import torch
from torch.optim import Optimizer

from corecli.base.errors import DataError, unknown_name

NAMES = ("adamw", "lars", "sgd")
Tensors = dict[str, torch.Tensor]


def build_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eta: float = 0.02,
    clip: bool = True,
    exclude_1d: bool = True,
    constant_rate: Iterable[torch.nn.Parameter] = (),
    rate_scales: Mapping[torch.nn.Parameter, float] | None = None,
) -> Optimizer:
    """An optimizer over the parameters that train, those of `constant_rate` at `lr` whatever `set_learning_rate` sets.

    `rate_scales` are factors of the rates of parameters, 1 for those it leaves out.
    `momentum` serves sgd (without Nesterov) and lars, `betas` adamw, `eta` and `clip` lars (see `LARS`). With
    `exclude_1d`, biases and normalization parameters get neither weight decay nor LARS's adaptation (SimCLR, B.9;
    BYOL, 3.3; solo-learn's `exclude_bias_n_norm`, whose CIFAR and ImageNet values eta and clip default to).
    Errors: UsageError for an unknown name.
    """
    constant = {id(p) for p in constant_rate}
    scales = rate_scales or {}
    groups = _groups(parameters, constant, scales, lr=lr, weight_decay=weight_decay, exclude_1d=exclude_1d)
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum, eta=eta, clip=clip)
    for group in groups:
        del group["adapt"]
    if name == "sgd":
        return SGD(groups, lr=lr, momentum=momentum, fused=True)
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=betas, fused=True)
    raise unknown_name("optimizer", name, NAMES)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the rate for the coming step, of every group but those of a constant one, times the group's own factor."""
    for group in optimizer.param_groups:
        if group.get("scheduled", True):
            group["lr"] = lr * group.get("scale", 1.0)


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Set the weight decay for the coming step, of the groups that have any."""
    for group in optimizer.param_groups:
        if group.get("decays", True):
            group["weight_decay"] = weight_decay


class _Eager:
    """The methods of `Optimizer` without their wrappers, which import torch's compiler: a second of start-up."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class SGD(_Eager, torch.optim.SGD):
    """SGD as in torch, without the compiler."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class AdamW(_Eager, torch.optim.AdamW):
    """AdamW as in torch, without the compiler."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class LARS(_Eager, Optimizer):
    """SGD with momentum whose step is scaled, per tensor, by the ratio of weight norm to gradient norm.

    For a tensor w with gradient g: trust = eta |w| / (|g| + weight_decay |w| + eps) (You et al. 2017, Eq. 6);
    v = momentum v + trust (g + weight_decay w); w = w - lr v. `clip` (LARC) caps trust at lr, so that lr is the
    largest rate of a tensor: trust = min(trust / lr, 1). Where |w| or |g| is 0, the tensor takes a plain step without
    decay. The rate stays outside the momentum. Groups take their own `weight_decay` and `adapt` (False: plain SGD).
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.02,
        clip: bool = True,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adapt": True}
        super().__init__(parameters, {**defaults, "eta": eta, "clip": clip, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; `closure`, if given, recomputes the loss and is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights)
        return loss

    def _update(self, group: dict[str, Any], weights: list[torch.Tensor]) -> None:
        gradients = [w.grad for w in weights if w.grad is not None]
        velocities = [self._velocity(w) for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        if group["adapt"]:
            trust, shrink = _trust(group, weights, gradients)
            for v, g, factor in zip(velocities, gradients, trust.unbind(), strict=True):
                v.addcmul_(g, factor)
            if group["weight_decay"]:
                for v, w, factor in zip(velocities, weights, shrink.unbind(), strict=True):
                    v.addcmul_(w, factor)
        else:
            torch._foreach_add_(velocities, gradients)
            torch._foreach_add_(velocities, weights, alpha=group["weight_decay"])
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])

    def _velocity(self, weight: torch.Tensor) -> torch.Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def optimizer_tensors(optimizer: Optimizer) -> Tensors:
    """The state as `{"3.momentum_buffer": tensor}`, 3 being the parameter's place; shares memory with the optimizer.

    Learning rates are not part of it: they are a function of the step.
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Tensors) -> None:
    """Take back a copy of what `optimizer_tensors` gave, bit for bit. Errors: DataError when it does not fit."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not (index.isdigit() and int(index) < len(parameters)):
            raise DataError(f"optimizer state {name!r} belongs to no parameter", hint="it is of another model")
        weight = parameters[int(index)]
        if value.ndim and value.shape != weight.shape:
            shapes = f"{tuple(value.shape)}, its parameter {tuple(weight.shape)}"
            raise DataError(f"optimizer state {name!r} has shape {shapes}", hint="it is of another model")
        # A state laid out unlike its parameter (channels last) would leave, or break, the fused kernels.
        state.setdefault(int(index), {})[key] = torch.empty_like(weight).copy_(value) if value.ndim else value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _groups(
    parameters: Iterable[torch.nn.Parameter],
    constant: set[int],
    scales: Mapping[torch.nn.Parameter, float],
    *,
    lr: float,
    weight_decay: float,
    exclude_1d: bool,
) -> list[dict[str, Any]]:
    trained = [p for p in parameters if p.requires_grad]
    kinds = [(id(p) not in constant, p.ndim > 1 or not exclude_1d, scales.get(p, 1.0)) for p in trained]
    groups = []
    for kind in product((True, False), (True, False), sorted({scale for *_, scale in kinds})):
        members = [p for p, its in zip(trained, kinds, strict=True) if its == kind]
        scheduled, decays, scale = kind
        told = {"lr": lr * scale, "scale": scale, "weight_decay": weight_decay if decays else 0.0}
        groups.append({"params": members, **told, "adapt": decays, "decays": decays, "scheduled": scheduled})
    return [group for group in groups if group["params"]]


def _trust(
    group: dict[str, Any], weights: list[torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(trust, trust * weight_decay) of each tensor, [N] each, without waiting for the device."""
    weight_norm = torch.stack(torch._foreach_norm(weights))
    gradient_norm = torch.stack(torch._foreach_norm(gradients))
    denominator = gradient_norm + group["weight_decay"] * weight_norm + group["eps"]
    trust = group["eta"] * weight_norm / denominator
    if group["clip"]:
        # lr may be 0 at the end of a cosine; the step is then 0 whatever the trust.
        trust = (trust / max(group["lr"], 1e-30)).clamp(max=1.0)
    usable = (weight_norm > 0) & (gradient_norm > 0)
    return torch.where(usable, trust, 1.0), torch.where(usable, trust * group["weight_decay"], 0.0)
