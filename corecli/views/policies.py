"""How views are made, as plain data: policies by name, each value with its source. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from corecli.base.config import parse_fields
from corecli.base.errors import UsageError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How one view of an image is made, in the order of the fields; by default the image is left as it is."""

    shrink: float = 0.0  # probability of a loss of detail: a half or a quarter as many pixels a side, and back
    crop: tuple[float, float] | None = None  # range of the random crop's area as a part of the image's; None: no crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of its width over its height, drawn on a log scale
    size: int | None = None  # side of the view in px; None: the image's own
    flip: float = 0.0  # probabilities: of a mirror image,
    jitter: float = 0.0  # of the next four together, in an order of their own for every image
    brightness: float = 0.0  # ratios are drawn from [1 - x, 1 + x], not below 0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0  # turns are drawn from [-x, x], x <= 0.5
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)  # range of the blur's standard deviation in px
    blur_kernel: Literal["tenth", "full"] = "tenth"  # a tenth of the side wide (SimCLR), or uncut as Pillow's
    solarize: float = 0.0
    threshold: float = 0.5  # values from here on are inverted by solarize (Pillow's 128 of 255)


_STRONG = Policy(  # CORE Table 9, which is SimCLR's
    crop=(0.08, 1.0),  # Table 9: randresizedcrop scale
    flip=0.5,  # Table 9: horizontal flip probability
    jitter=0.8,  # Table 9: color jitter probability
    brightness=0.8,  # Table 9
    contrast=0.8,  # not in Table 9; SimCLR, appendix A, and solo-learn, which CORE refers to
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
# BYOL, appendix B, Table 6: one view blurred, the other seldom, and solarized.
_BYOL = replace(_STRONG, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)
_BYOL_2 = replace(_BYOL, blur=0.1, solarize=0.2)
_DINO = replace(_BYOL, crop=(0.4, 1.0))  # DINO, appendix E and its code: BYOL's on large crops; locals from 5 to 40 %

POLICIES: dict[str, Policy] = {
    "strong": _STRONG,
    "weak": _WEAK,
    "moco": replace(_STRONG, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),  # MoCo v2; GenSSL for MoCo
    "byol-1": _BYOL,
    "byol-2": _BYOL_2,
    "byol-cifar-1": replace(_BYOL, blur=0.0),  # solo-learn's for 32 px: no blur
    "byol-cifar-2": replace(_BYOL_2, blur=0.0),
    "byol-weak-1": replace(_WEAK, saturation=0.2, blur=0.0),  # CORE, Table 12's note on BYOL; AdaInf's asymmetric one
    "byol-weak-2": replace(_WEAK, saturation=0.2, blur=0.0, solarize=0.2),
    "mocov3-1": replace(_BYOL, crop=(0.2, 1.0)),  # MoCo v3's code: BYOL's on crops of 20 % and more
    "mocov3-2": replace(_BYOL_2, crop=(0.2, 1.0)),
    "dino-1": _DINO,
    "dino-2": replace(_DINO, blur=0.1, solarize=0.2),
    "dino-local": replace(_DINO, crop=(0.05, 0.4), blur=0.5),
    # SynCLR's code: a coin chooses one of BYOL's two for each image, on crops of 32 % and more. Here are the coin's
    # marginals: blur in one half and in a tenth of the other, solarize in a fifth of that. Shrinking is in the paper's
    # runs (of 256 px to 128 or 64, as in StableRep's), and not in the released command.
    "synclr": replace(_BYOL, shrink=0.05, crop=(0.32, 1.0), blur=0.55, solarize=0.1),
    "synclr-local": replace(_BYOL, crop=(0.08, 0.32), blur=0.5),
    "crop": Policy(crop=(0.08, 1.0), flip=0.5),  # what supervised training and linear probes use; GenSSL's "crop only"
    "flip": Policy(flip=0.5),  # MixDiff's "no augmentation"
    "none": Policy(),
}
# Names that give the two global views policies of their own.
PAIRS: dict[str, tuple[str, str]] = {
    name: (f"{name}-1", f"{name}-2") for name in ("byol", "byol-cifar", "byol-weak", "mocov3", "dino")
}
AUGMENTATIONS = (*POLICIES, *PAIRS)
_LOCAL_CROP = (0.05, 0.4)  # DINO, section 4: scale of local crops
_CHANGEABLE = tuple(field.name for field in fields(Policy) if field.name not in ("size", "blur_kernel"))
# What values of a field may be, where not from 0 to 1: no crop is empty.
_RANGES = {"crop": (1e-4, 1), "ratio": (0.01, 100), "sigma": (1e-3, 100), "hue": (0, 0.5)}
_RANGES |= dict.fromkeys(("brightness", "contrast", "saturation"), (0, 10))


def get_policy(name: str, *, size: int | None = None) -> Policy:
    """The policy of that name with views of `size` px. Errors: UsageError naming the nearest choice."""
    if name not in POLICIES:
        raise unknown_name("augmentation", name, POLICIES)
    return replace(POLICIES[name], size=size)


def parse_changes(given: Mapping[str, str]) -> dict[str, Any]:
    """Values for fields of a policy from texts by name, such as flip=0 or crop=0.5,1.

    Errors: UsageError for an unknown field, or a value that is none or outside its range.
    """
    for name in given:
        if name not in _CHANGEABLE:
            raise unknown_name("value of an augmentation", name, _CHANGEABLE)
    changes = parse_fields(Policy, given, where="augmentations")
    for name, value in changes.items():
        low, high = _RANGES.get(name, (0, 1))
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) and (len(values) != 2 or values[0] > values[1]):
            raise UsageError(f"{name} is a range LOW,HIGH, not {given[name]!r}")
        if not all(low <= v <= high for v in values):
            raise UsageError(f"{name} is from {low:g} to {high:g}, not {given[name]}")
    return changes


def view_policies(names: Sequence[str], *, num_views: int, changes: Mapping[str, Any]) -> tuple[Policy, ...]:
    """The policy of each global view, with changes: those of the names in turn, the last serving the views that remain.

    Errors: UsageError naming the nearest choice.
    """
    singles = [single for name in names for single in PAIRS.get(name, (name,))]
    return tuple(replace(get_policy(singles[min(view, len(singles) - 1)]), **changes) for view in range(num_views))


def local_policy(names: Sequence[str], *, changes: Mapping[str, Any]) -> Policy:
    """The policy of local views: the name's own where it has one, else its last on DINO's small crops.

    Changes are made but for the crop's, which is of global views.
    """
    own = f"{names[-1]}-local"
    if own in POLICIES:
        policy = POLICIES[own]
    else:
        policy = replace(view_policies(names, num_views=2, changes={})[-1], crop=_LOCAL_CROP)
    return replace(policy, **{name: value for name, value in changes.items() if name != "crop"})
