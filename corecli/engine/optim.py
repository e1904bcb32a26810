"""Optimizers by name, and their state as a flat dict of tensors."""
# The _foreach functions, on which torch's own optimizers are built, have no public names.
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
    """Build an optimizer for the parameters that require a gradient.

    constant_rate: parameters that keep the learning rate `lr` when `set_learning_rate` is called.
    rate_scales: factors of the learning rate by parameter, 1 if absent.
    momentum: of sgd (without Nesterov) and lars. betas: of adamw. eta, clip: of lars, see `LARS`.
    exclude_1d: biases and normalization parameters get no weight decay and no adaptation by LARS (SimCLR, B.9; BYOL,
    3.3; `exclude_bias_n_norm` in solo-learn, from which the defaults of eta and clip are taken).
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
    """Set the learning rate of the next step, times the factor of each group; groups of constant rate keep theirs."""
    for group in optimizer.param_groups:
        if group.get("scheduled", True):
            group["lr"] = lr * group.get("scale", 1.0)


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Set the weight decay of the next step in the groups that use it."""
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
    """SGD with momentum that scales the step of each tensor by the ratio of weight norm to gradient norm.

    For a tensor w with gradient g: trust = eta |w| / (|g| + weight_decay |w| + eps) (You et al. 2017, Eq. 6);
    v = momentum v + trust (g + weight_decay w); w = w - lr v. `clip` (LARC) caps trust at lr, so that lr is the
    largest rate of a tensor: trust = min(trust / lr, 1). If |w| or |g| is 0, the tensor takes a plain step without
    decay. The learning rate is not part of the momentum. Groups may set `weight_decay` and `adapt` (False: plain SGD).
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
        """Make one step. An optional `closure` recomputes the loss and is called first."""
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
    """Return the state as `{"3.momentum_buffer": tensor}`, where 3 is the index of the parameter.

    The tensors share memory with the optimizer. Learning rates are absent: they are a function of the step.
    """
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: Optimizer, tensors: Tensors) -> None:
    """Restore a copy of what `optimizer_tensors` returned. Errors: DataError if it does not fit the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not (index.isdigit() and int(index) < len(parameters)):
            raise DataError(f"optimizer state {name!r} belongs to no parameter", hint="the state is from another model")
        weight = parameters[int(index)]
        if value.ndim and value.shape != weight.shape:
            shapes = f"{tuple(value.shape)}, its parameter {tuple(weight.shape)}"
            raise DataError(f"optimizer state {name!r} has shape {shapes}", hint="the state is from another model")
        # Fused kernels need states in the memory layout of their parameters (channels last).
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
        members = [p for p, own in zip(trained, kinds, strict=True) if own == kind]
        scheduled, decays, scale = kind
        rates = {"lr": lr * scale, "scale": scale, "weight_decay": weight_decay if decays else 0.0}
        groups.append({"params": members, **rates, "adapt": decays, "decays": decays, "scheduled": scheduled})
    return [group for group in groups if group["params"]]


def _trust(
    group: dict[str, Any], weights: list[torch.Tensor], gradients: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (trust, trust * weight_decay) of the tensors, [N] each, without waiting for the device."""
    weight_norm = torch.stack(torch._foreach_norm(weights))
    gradient_norm = torch.stack(torch._foreach_norm(gradients))
    denominator = gradient_norm + group["weight_decay"] * weight_norm + group["eps"]
    trust = group["eta"] * weight_norm / denominator
    if group["clip"]:
        # At the end of a cosine lr may be 0; the step is then 0 for any trust.
        trust = (trust / max(group["lr"], 1e-30)).clamp(max=1.0)
    usable = (weight_norm > 0) & (gradient_norm > 0)
    return torch.where(usable, trust, 1.0), torch.where(usable, trust * group["weight_decay"], 0.0)
