"""Mix real and synthetic image sets, or convert one.

The mixture is a short JSON file that names its parts. No image is copied, and every verb reads the mixture like any
other image set. --repeat is N in CORE and AdaInf; --beta sets the share of real images instead:
beta = N|D| / (N|D| + |S|). With --materialize the images are written too, in the format of the file name, so that with
one part this verb converts between formats.

Photographs of different sizes are written as the files that they are: into a directory, a tar, or one safetensors file
with an index of their offsets and sizes. --encode jpeg:90 --max-px 512 encodes them again, so that they take less space
and decode faster. Sets of one size are written as pixels, without loss, unless --encode is given.

The verb prints the number of real and synthetic slots of an epoch, the resulting share of real ones, the expected
number of pairs from one group in a batch, the images per class, and the real images with and without a synthetic
partner. Each pair from one group is a false negative of a contrastive loss; --guard prevents them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from corecli.base.config import Common, Preset, option
from corecli.data.imageset import writable_formats

if TYPE_CHECKING:
    pass

SUMMARY = "mix real and synthetic image sets, or convert one"
PLACE = 4
EXAMPLES = (
    ("CORE on CIFAR: real images twice, samples once", "--real DIR --synthetic syn --repeat 2 --out mix.json"),
    (
        "A tenth of each class of the real images, three quarters real",
        "--real DIR --fraction 0.1 --synthetic syn --beta 0.75 --out mix.json",
    ),
    (
        "Second of five generations of a loop: unseen real images and the samples of the first generation",
        "--real DIR --share 2/5 --synthetic syn --out mix.json",
    ),
    (
        "Pack photographs into one file, with the longer side at most 512 px",
        "--real DIR --materialize train.safetensors --encode jpeg:90 --max-px 512",
    ),
    ("Pack a directory into one memory-mapped file", "--real DIR --materialize train.safetensors"),
)
PRESETS: dict[str, Preset] = {
    "core-cifar": {"repeat": 2.0},  # CORE Table 12, CF-10, CF-100 and T-IN
    "core-imagenet": {"repeat": 1.0},  # CORE Table 12, IN-1K
    "core-scarce": {"repeat": 10.0, "per_class": 1000},  # CORE C.5
}


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli inflate`."""

    real: tuple[str, ...] = option((), help="set of real images; repeatable", role="input", metavar="SET")
    synthetic: tuple[str, ...] = option(
        (),
        help="set of synthetic images; repeatable, to accumulate the samples of several rounds",
        role="input",
        metavar="SET",
    )
    out: Path | None = option(None, help="mixture file to write", role="output", metavar="FILE.json")
    materialize: Path | None = option(
        None,
        help="write the images too, in the format of the suffix; without a suffix a directory",
        role="output",
        metavar="PATH",
    )
    format: str | None = option(None, help="format of --materialize (default: by its suffix)", choices=writable_formats)
    encode: str | None = option(
        None, help="write image files: as-read, or encoded again as png or jpeg:QUALITY", role="runtime", metavar="HOW"
    )
    max_px: int | None = option(
        None, help="shrink images whose longer side exceeds N px (with --encode)", role="runtime", minimum=1
    )
    repeat: float = option(1.0, help="number of times an epoch shows each real image (N)", minimum=1e-9)
    beta: float | None = option(None, help="share of real slots in an epoch; replaces --repeat", minimum=0, maximum=1)
    fraction: float | None = option(
        None, help="use this fraction of the real images of each class", minimum=0, maximum=1
    )
    per_class: int | None = option(None, help="use this many real images of each class", minimum=1)
    first: int | None = option(None, help="use only this many real images, in order", minimum=1)
    share: str | None = option(
        None, help="use the K-th of N disjoint parts of the real images of each class", metavar="K/N"
    )
    order: Literal["union", "sequential"] = option(
        "union", help="order of an epoch: all parts shuffled together, or one after another"
    )
    guard: bool = option(False, help="put at most one image of a group into a batch")
    missing: Literal["self", "drop", "fail"] = option(
        "self",
        help="real images without a synthetic partner: keep, drop or refuse them",
    )
    round: int | None = option(None, help="number of the round, stored in the mixture", minimum=0)
    image_size: int | None = option(
        None, help="resize and crop images to N px, when writing them or if parts differ in size", minimum=1
    )
    batch_size: int = option(512, help="batch size for which collisions are counted", role="runtime", minimum=1)
    on_bad: Literal["fail", "skip"] = option("fail", help="unreadable images: fail, or skip up to 10 percent of them")
