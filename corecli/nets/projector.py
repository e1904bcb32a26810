"""Projectors: multi-layer perceptrons that methods train on the features of a backbone."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict, get_args

from torch import nn

from corecli.base.errors import UsageError, unknown_name

Norm = Literal["none", "batch", "layer"]
LastNorm = Literal["none", "affine", "plain"]
Activation = Literal["relu", "gelu"]


class ProjectorSpec(TypedDict):
    """Linear layers of widths `hidden`, ..., `hidden`, `dim`, with norm and activation between them, as JSON.

    Defaults: 2 `layers`; `bias` unless `norm` is batch; `last_norm` affine unless `norm` is none; `activation` relu, or
    gelu if `norm` is layer. `last_norm` is with scale and shift (affine) or without (plain).
    """

    hidden: int
    dim: int
    norm: Norm
    layers: NotRequired[int]
    bias: NotRequired[bool]
    last_norm: NotRequired[LastNorm]
    activation: NotRequired[Activation]


def build_projector(num_features: int, spec: ProjectorSpec) -> nn.Sequential:
    """Return the projector of a spec, float [B, num_features] -> [B, dim], with torch's default initialization.

    Published specs, without `hidden` and `dim`: SimCLR in solo-learn (`norm` none) and in its own code (batch); MoCo v2
    (none); BYOL (batch, `bias`, `last_norm` none); SimSiam (batch, 3 `layers`, `last_norm` plain); Barlow Twins (batch,
    3 `layers`, `last_norm` none); MoCo v3 (batch, `last_norm` plain); DINO up to its prototypes (none, 3 `layers`,
    gelu); SynCLR's code (layer, 3 `layers`, `last_norm` plain). Errors: UsageError.
    """
    norm = _choice("norm", spec["norm"], Norm)
    last_norm = _choice("last norm", spec.get("last_norm", "none" if norm == "none" else "affine"), LastNorm)
    activation = _choice("activation", spec.get("activation", "gelu" if norm == "layer" else "relu"), Activation)
    bias, num_layers = spec.get("bias", norm != "batch"), spec.get("layers", 2)
    if num_layers < 1:
        raise UsageError(f"a projector needs at least 1 layer, not {num_layers}")
    widths = [num_features, *[spec["hidden"]] * (num_layers - 1), spec["dim"]]
    layers: list[nn.Module] = []
    for before, width in zip(widths[:-2], widths[1:-1], strict=True):
        layers.append(nn.Linear(before, width, bias=bias))
        layers += [] if norm == "none" else [_normalization(norm, width)]
        layers.append(nn.ReLU(inplace=True) if activation == "relu" else nn.GELU())
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    if last_norm != "none":
        layers.append(_normalization(norm, widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def _normalization(norm: str, width: int, *, affine: bool = True) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=affine) if norm == "layer" else nn.BatchNorm1d(width, affine=affine)


def _choice(what: str, value: str, choices: Any) -> str:
    if value not in get_args(choices):
        raise unknown_name(f"projector {what}", value, get_args(choices))
    return value
