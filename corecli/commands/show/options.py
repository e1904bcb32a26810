"""Draw images, features or training runs as one picture; what is given says which.

SET alone is a contact sheet. A set whose groups have several members, or any set with --real, is drawn by group: one
column a group, its real image on top and its synthetic members below, as in CORE's Figure 7. Other sets are drawn as a
plain grid.

SET with --features draws nearest neighbors: in every row an image, then those nearest to it by the cosine of their
features, with the cosine. They are searched in the set itself, or with --real in the real images, whose features are
in --real-features: are generated images copies?

SET with --encoder draws attention: in every row an image, then where the class token of the last block of a vision
transformer looks, head by head, as heat, or with --mass as DINO does: the patches in view together hold that share of
the head's attention.

SET with --encoder and --picture pca draws patches: below every image the principal components of its patches as
colors, which mean the same in all images, on what the first component tells to be foreground. Images are taken as
large as they are, or as --image-size says.

SET with --captions draws what was made from captions: above the images of a group the caption it is named after.

A feature table is scattered in the plane, colored by label: along its two principal components, or with --embedding
tsne so that near rows are near (exact t-SNE of up to 3000 rows). The folder of a training run, FILE.d, is drawn as
curves of all it has logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from corecli.base.config import Common, Preset, option

if TYPE_CHECKING:
    pass

SUMMARY = "draw an image set as a contact sheet"
PLACE = 9
EXAMPLES = (
    ("Samples below the real images they were made from", "syn --real DIR --out sheet.png"),
    ("The first images of a set", "DIR --columns 16 --out grid.png"),
    ("What an encoder finds alike", "DIR --features z.safetensors --out neighbors.png"),
    (
        "The training images nearest to generated ones",
        "syn --features zs.safetensors --real DIR --real-features z.safetensors --out copies.png",
    ),
    ("Where a vision transformer looks", "DIR --encoder vit.safetensors --mass 0.6 --out attention.png"),
    ("Parts that a vision transformer finds alike", "DIR --encoder vit.safetensors --picture pca --out pca.png"),
    ("Images below their captions", "syn --captions captions.jsonl --columns 4 --out captions.png"),
    ("A feature table in the plane", "z.safetensors --embedding tsne --out scatter.png"),
    ("How a training run went", "f.safetensors.d --out curves.png"),
)
PRESETS: dict[str, Preset] = {}
OPTIONS = {  # that a picture has, beyond those of every picture
    "sheet": {"real", "columns", "rows", "image_size"},
    "neighbors": {"features", "real", "real_features", "columns", "rows", "image_size"},
    "captions": {"captions", "columns", "rows", "image_size"},
    "pca": {"encoder", "picture", "columns", "rows", "image_size"},
    "attention": {"encoder", "picture", "mass", "columns", "rows", "image_size"},
    "scatter": {"embedding"},
    "curves": {"columns"},
}


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli show`."""

    data: str = option(
        help="image set, feature table or run folder to draw", role="input", metavar="SET|FILE|DIR", positional=True
    )
    out: Path = option(help="picture to write", role="output", metavar="FILE.png")
    real: str | None = option(None, help="the real images the groups came from", role="input", metavar="SET")
    features: Path | None = option(
        None, help="features of the set, to draw nearest neighbors", role="input", metavar="FILE"
    )
    real_features: Path | None = option(
        None, help="features of --real, to find neighbors among them", role="input", metavar="FILE"
    )
    encoder: str | None = option(
        None, help="vision transformer, to draw its attention or its patches", role="input", metavar="FILE|NAME"
    )
    picture: Literal["attention", "pca"] | None = option(None, help="what to draw of the encoder [attention]")
    captions: Path | None = option(
        None, help="the captions a set was made from, to draw above its images", role="input", metavar="FILE"
    )
    mass: float | None = option(
        None, help="share of a head's attention to keep in view, such as 0.6", minimum=0, maximum=1
    )
    embedding: Literal["pca", "tsne"] | None = option(None, help="how a feature table comes to the plane [pca]")
    columns: int | None = option(None, help="at most this many pictures beside each other [10; 3 curves]", minimum=1)
    rows: int | None = option(None, help="at most this many below each other [6]", minimum=1)
    image_size: int | None = option(None, help="resize to this", minimum=1)
