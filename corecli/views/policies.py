"""Augmentation policies as plain data, by name, each value with its source. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from corecli.base.config import parse_fields
from corecli.base.errors import UsageError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The augmentation of one view, applied in the order of the fields; the defaults leave the image unchanged."""

    shrink: float = 0.0  # probability to downsample to a half or a quarter of the side and back
    crop: tuple[float, float] | None = None  # range of the crop's share of the area; None: no crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height, log-uniform
    size: int | None = None  # side of the view in px; None: that of the image
    flip: float = 0.0  # probability of a horizontal flip
    jitter: float = 0.0  # probability of the next four together, in random order
    brightness: float = 0.0  # strength x: a ratio from [1 - x, 1 + x], at least 0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # strength x <= 0.5: a rotation from [-x, x] turns
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability
    sigma: tuple[float, float] = (0.1, 2.0)  # range of the blur's standard deviation in px
    blur_kernel: Literal["tenth", "full"] = "tenth"  # width: a tenth of the side (SimCLR), or not cut (Pillow)
    solarize: float = 0.0  # probability
    threshold: float = 0.5  # solarize inverts values at or above this (Pillow: 128 of 255)


_STRONG = Policy(  # CORE Table 9, which is SimCLR's
    crop=(0.08, 1.0),  # Table 9: randresizedcrop scale
    flip=0.5,  # Table 9: horizontal flip probability
    jitter=0.8,  # Table 9: color jitter probability
    brightness=0.8,  # Table 9
    contrast=0.8,  # not in Table 9; SimCLR, appendix A, and solo-learn, which CORE cites
    saturation=0.8,  # Table 9
    hue=0.2,  # Table 9
    grey=0.2,  # Table 9: gray scale
    blur=0.5,  # Table 9: gaussian blur probability; sigma from SimCLR, appendix A
)
_WEAK = Policy(  # CORE Table 12, which is AdaInf's
    crop=(0.2, 1.0),  # Table 12: randresizedcrop scale
    flip=0.5,  # Table 12: horizontal flip probability
    jitter=0.4,  # Table 12: color jitter probability
    brightness=0.4,  # Table 12
    contrast=0.4,  # not in Table 12; AdaInf's symmetric policy, from which the table comes
    saturation=0.4,  # Table 12
    hue=0.1,  # Table 12
    grey=0.2,  # Table 12: gray scale
    blur=0.5,  # Table 12: gaussian blur probability
)
# BYOL, appendix B, Table 6: one view is blurred; the other is rarely blurred, and solarized.
_BYOL = replace(_STRONG, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)
_BYOL_2 = replace(_BYOL, blur=0.1, solarize=0.2)
_DINO = replace(_BYOL, crop=(0.4, 1.0))  # DINO, appendix E and its code: BYOL's policies on large crops

POLICIES: dict[str, Policy] = {
    "strong": _STRONG,
    "weak": _WEAK,
    "moco": replace(_STRONG, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),  # MoCo v2; GenSSL for MoCo
    "byol-1": _BYOL,
    "byol-2": _BYOL_2,
    "byol-cifar-1": replace(_BYOL, blur=0.0),  # solo-learn for 32 px: no blur
    "byol-cifar-2": replace(_BYOL_2, blur=0.0),
    "byol-weak-1": replace(
        _WEAK, saturation=0.2, blur=0.0
    ),  # CORE, note of Table 12 on BYOL; AdaInf's asymmetric policy
    "byol-weak-2": replace(_WEAK, saturation=0.2, blur=0.0, solarize=0.2),
    "mocov3-1": replace(_BYOL, crop=(0.2, 1.0)),  # MoCo v3's code: BYOL's policies on crops of at least 20%
    "mocov3-2": replace(_BYOL_2, crop=(0.2, 1.0)),
    "dino-1": _DINO,
    "dino-2": replace(_DINO, blur=0.1, solarize=0.2),
    "dino-local": replace(_DINO, crop=(0.05, 0.4), blur=0.5),
    # SynCLR's code draws one of BYOL's two policies for each image, on crops of at least 32%. These are the marginal
    # probabilities: blur (1.0 + 0.1) / 2, solarize 0.2 / 2. The paper's runs use shrink (256 px to 128 or 64, as in
    # StableRep); the released command does not.
    "synclr": replace(_BYOL, shrink=0.05, crop=(0.32, 1.0), blur=0.55, solarize=0.1),
    "synclr-local": replace(_BYOL, crop=(0.08, 0.32), blur=0.5),
    "crop": Policy(crop=(0.08, 1.0), flip=0.5),  # supervised training and linear probes; GenSSL's "crop only"
    "flip": Policy(flip=0.5),  # MixDiff's "no augmentation"
    "none": Policy(),
}
# Names that stand for two policies, one for each global view.
PAIRS: dict[str, tuple[str, str]] = {
    name: (f"{name}-1", f"{name}-2") for name in ("byol", "byol-cifar", "byol-weak", "mocov3", "dino")
}
AUGMENTATIONS = (*POLICIES, *PAIRS)
_LOCAL_CROP = (0.05, 0.4)  # DINO, section 4: scale of local crops
# Fields that --augment-set changes, and the values allowed where they are not 0 to 1; no crop is empty.
_CHANGEABLE = tuple(field.name for field in fields(Policy) if field.name not in ("size", "blur_kernel"))
_RANGES = {"crop": (1e-4, 1), "ratio": (0.01, 100), "sigma": (1e-3, 100), "hue": (0, 0.5)}
_RANGES |= dict.fromkeys(("brightness", "contrast", "saturation"), (0, 10))


def get_policy(name: str, *, size: int | None = None) -> Policy:
    """Return a policy by name, for views of `size` px. Errors: UsageError naming the nearest choice."""
    if name not in POLICIES:
        raise unknown_name("augmentation", name, POLICIES)
    return replace(POLICIES[name], size=size)


def parse_changes(given: Mapping[str, str]) -> dict[str, Any]:
    """Return values for fields of a policy from texts by name, such as flip=0 or crop=0.5,1.

    Errors: UsageError for an unknown field, or a value that is malformed or outside its range.
    """
    for name in given:
        if name not in _CHANGEABLE:
            raise unknown_name("value of an augmentation", name, _CHANGEABLE)
    changes = parse_fields(Policy, given, where="augmentations")
    for name, value in changes.items():
        low, high = _RANGES.get(name, (0, 1))
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) and (len(values) != 2 or values[0] > values[1]):
            raise UsageError(f"{name} must be a range LOW,HIGH, not {given[name]!r}")
        if not all(low <= v <= high for v in values):
            raise UsageError(f"{name} must be from {low:g} to {high:g}, not {given[name]}")
    return changes


def view_policies(names: Sequence[str], *, num_views: int, changes: Mapping[str, Any]) -> tuple[Policy, ...]:
    """Return the policy of each global view, with changes: the names in turn; the last one serves the remaining views.

    Errors: UsageError naming the nearest choice.
    """
    singles = [single for name in names for single in PAIRS.get(name, (name,))]
    return tuple(replace(get_policy(singles[min(view, len(singles) - 1)]), **changes) for view in range(num_views))


def local_policy(names: Sequence[str], *, changes: Mapping[str, Any]) -> Policy:
    """Return the policy of local views: NAME-local of the last name, or without one its policy on DINO's small crops.

    All changes apply except crop, which is for global views.
    """
    own = f"{names[-1]}-local"
    if own in POLICIES:
        policy = POLICIES[own]
    else:
        policy = replace(view_policies(names, num_views=2, changes={})[-1], crop=_LOCAL_CROP)
    return replace(policy, **{name: value for name, value in changes.items() if name != "crop"})
