"""Projectors: the multi-layer perceptrons that methods train on a backbone's features."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict, get_args

from torch import nn

from corecli.base.errors import UsageError, unknown_name

Norm = Literal["none", "batch"]
LastNorm = Literal["none", "affine", "plain"]
Activation = Literal["relu", "gelu"]


class ProjectorSpec(TypedDict):
    """Linear layers to `hidden`, ..., `hidden`, `dim`, with norm and activation between them; JSON.

    A key that is left out is 2 `layers`, `bias` where `norm` is none, `last_norm` affine where `norm` is batch and none
    where it is none, and ReLU. `last_norm` is a BatchNorm with (affine) or without (plain) scale and shift.
    """

    hidden: int
    dim: int
    norm: Norm
    layers: NotRequired[int]
    bias: NotRequired[bool]
    last_norm: NotRequired[LastNorm]
    activation: NotRequired[Activation]


def build_projector(num_features: int, spec: ProjectorSpec) -> nn.Sequential:
    """The projector of a spec, float [B, num_features] -> [B, dim], in torch's default initialisation.

    Published ones, beside `hidden` and `dim`: SimCLR in solo-learn (`norm` none) and in its own code (batch); MoCo v2
    (none); BYOL (batch, `bias`, `last_norm` none); SimSiam (batch, 3 `layers`, `last_norm` plain); Barlow Twins (batch,
    3 `layers`, `last_norm` none); MoCo v3 (batch, `last_norm` plain); DINO up to its prototypes (none, 3 `layers`,
    gelu). Errors: UsageError.
    """
    norm = _choice("norm", spec["norm"], Norm)
    last_norm = _choice("last norm", spec.get("last_norm", "affine" if norm == "batch" else "none"), LastNorm)
    activation = _choice("activation", spec.get("activation", "relu"), Activation)
    bias, num_layers = spec.get("bias", norm == "none"), spec.get("layers", 2)
    if num_layers < 1:
        raise UsageError(f"a projector has 1 layer or more, not {num_layers}")
    widths = [num_features, *[spec["hidden"]] * (num_layers - 1), spec["dim"]]
    layers: list[nn.Module] = []
    for before, width in zip(widths[:-2], widths[1:-1], strict=True):
        layers.append(nn.Linear(before, width, bias=bias))
        layers += [nn.BatchNorm1d(width)] if norm == "batch" else []
        layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.GELU())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    layers += [] if last_norm == "none" else [nn.BatchNorm1d(widths[-1], affine=last_norm == "affine")]
    return nn.Sequential(*layers)


def _choice(what: str, value: str, choices: Any) -> str:
    if value not in get_args(choices):
        raise unknown_name(f"projector {what}", value, get_args(choices))
    return value
