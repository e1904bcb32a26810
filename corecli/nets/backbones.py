"""Backbones: ResNets with a choice of stem, a tiny one for laptops, ViTs, and any timm model.

Key names are those of torchvision or timm, so that weights load there with `strict=True` (without the classifier).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, Literal, cast

from torch import nn

from corecli.base.errors import UnavailableError, UsageError, unknown_name
from corecli.nets import vit
from corecli.nets.resnet import BasicBlock, Bottleneck, ResNet

Stem = Literal["cifar", "imagenet", "cifar-solo", "cifar-lightly"]  # the last two: only to read their checkpoints
STEMS = ("cifar", "imagenet", "cifar-solo", "cifar-lightly")
TIMM = "timm:"

_RESNETS: dict[str, Callable[[], ResNet]] = {
    # 1.2 M parameters, half the width of a ResNet-10: images of 8 to 16 px train in seconds on a laptop.
    "resnet10-tiny": lambda: ResNet(BasicBlock, (1, 1, 1, 1), width=32),
    "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": lambda: ResNet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
}
NAMES = tuple(_RESNETS)
_VIT_NAMES = tuple(f"{vit.PREFIX}{size}/16" for size in vit.SIZES)
_SMALL_PX = 64
_TAKE_ANY_SIZE = ("vision_transformer", "deit", "eva")  # timm's modules whose models interpolate their positions


def build_backbone(
    name: str, *, stem: Stem | None, image_size: int | None, drop_path: float = 0.0
) -> tuple[nn.Module, int]:
    """Build a backbone with random weights, and its number of features: float [B, 3, H, W] -> float [B, D], pooled.

    `name` is one of NAMES, `vit-SIZE/PATCH` or `timm:NAME`; the stem of the last two is their own (`stem` None), and a
    ViT's positions are those of `image_size`. `drop_path` is the rate of stochastic depth, for ViTs and timm only.
    Errors: UsageError, UnavailableError without timm.
    """
    if name.startswith(TIMM):
        timm_name = name.removeprefix(TIMM)
        return build_timm(timm_name, image_size=image_size, pretrained=False, drop_path=drop_path)
    if name.startswith(vit.PREFIX):
        return vit.build_vit(name, image_size=image_size or vit.DEFAULT_PX, drop_path=drop_path)
    if name not in NAMES:
        raise unknown_name("backbone", name, (*NAMES, *_VIT_NAMES, "timm:NAME"))
    if drop_path:
        raise UsageError(f"{name} has no drop path", hint="remove --drop-path, or use a ViT")
    net: Any = _RESNETS[name]()
    num_features = net.fc.in_features
    net.fc = nn.Identity()
    if stem != "imagenet":
        _shrink_stem(net, padding=2 if stem == "cifar-solo" else 1)
    if stem == "cifar-lightly":
        net.relu = nn.Identity()
    return net, num_features


def choose_stem(backbone: str, image_size: int | None) -> Stem | None:
    """Return cifar for images of up to 64 px, else imagenet; None for ViTs and timm models, which have their own."""
    if backbone.startswith((TIMM, vit.PREFIX)):
        return None
    return "cifar" if image_size is not None and image_size <= _SMALL_PX else "imagenet"


def check_stem(backbone: str, stem: str | None) -> Stem | None:
    """Return `stem` if the backbone can have it. Errors: UsageError."""
    if backbone.startswith((TIMM, vit.PREFIX)):
        if stem is not None:
            raise UsageError(f"{backbone} has a stem of its own", hint="drop --stem")
        return None
    if stem not in STEMS:
        raise unknown_name("stem", str(stem), STEMS)
    return cast(Stem, stem)


def check_size(backbone: nn.Module, height: int, width: int) -> None:
    """Raise UsageError if the image size is no multiple of a ViT's patch."""
    if getattr(backbone, "dynamic_img_size", False):
        patch: Any = backbone.patch_embed
        vit.check_divides(patch.patch_size[0], height, width)


def set_image_size(backbone: nn.Module, name: str, image_size: int) -> None:
    """Fit a backbone to another image size: a ViT's positions are interpolated; other networks take any size.

    Errors: UsageError if a timm model takes one size only, or the size is no multiple of the patch.
    """
    if getattr(backbone, "dynamic_img_size", False):
        vit.set_image_size(backbone, image_size)
    elif name.startswith(TIMM) and _has_fixed_size(_import_timm(), name.removeprefix(TIMM)):
        raise UsageError(f"{name} takes images of one size only", hint="give --image-size")


def build_timm(name: str, *, image_size: int | None, pretrained: bool, drop_path: float = 0.0) -> tuple[nn.Module, int]:
    """Return a timm model without classifier, and its number of features; ViTs take images of any size.

    Errors: UnavailableError if timm is not installed or the weights cannot be fetched; UsageError for an unknown name.
    """
    timm = _import_timm()
    _check_timm_name(timm, name)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if image_size is not None and _has_fixed_size(timm, name):
        options["img_size"] = image_size
    if name.split(".")[0] in {n for m in _TAKE_ANY_SIZE for n in timm.list_models(module=m)}:
        options["dynamic_img_size"] = True
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:
        if not pretrained:
            raise UsageError(f"timm cannot build {name}: {error}") from error
        hint = f"download the file and write timm:{name}:FILE"
        raise UnavailableError(f"the weights of timm's {name} cannot be fetched", hint=hint) from error
    return net, int(getattr(net, "head_hidden_size", None) or net.num_features)


def timm_preprocessing(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the mean, std, image_size, interpolation and resize that a timm model expects. Errors: as `build_timm`."""
    timm = _import_timm()
    _check_timm_name(timm, name)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return {"image_size": image_size or 224}
    side = image_size or config.input_size[-1]
    found = {
        "mean": list(config.mean),
        "std": list(config.std),
        "image_size": side,
        "interpolation": config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic",
    }
    if config.crop_mode == "center" and config.crop_pct < 1:
        found["resize"] = math.floor(side / config.crop_pct)
    return found


def _shrink_stem(net: Any, *, padding: int) -> None:
    """Use a 3x3 convolution of stride 1 without pooling, for small images (SimCLR B.9; CORE C.1)."""
    conv = nn.Conv2d(3, net.conv1.out_channels, 3, stride=1, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    net.conv1, net.maxpool = conv, nn.Identity()


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UnavailableError("timm is not installed", hint="pip install 'corecli[timm]'") from error
    return timm


def _check_timm_name(timm: Any, name: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UsageError(f"timm has no model {name!r}", hint=f"did you mean {near[0]!r}?" if near else None)


def _has_fixed_size(timm: Any, name: str) -> bool:
    config = timm.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)
