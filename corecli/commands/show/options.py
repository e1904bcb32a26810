"""Draw images, features or a training run as one picture.

The inputs determine the picture. SET alone gives a contact sheet. If its groups have several members, or with --real,
each column shows one group: its real image on top and its synthetic members below, as in Figure 7 of CORE. Other sets
are drawn as a plain grid.

SET with --features shows nearest neighbors. Each row has an image and the images nearest to it, with the cosine
similarity of their features. Neighbors are searched in the set itself or, with --real and --real-features, among the
real images, which reveals generated images that are copies.

SET with --encoder shows attention. Each row has an image and, for each head, the attention of the class token in the
last block of a vision transformer: as a heat map, or with --mass as the patches that together hold that share of the
attention, as DINO does.

SET with --encoder and --picture pca shows patch features. Below each image, the principal components of its patches
appear as colors that are shared by all images; the background, according to the first component, is black. Images keep
their size unless --image-size is given.

SET with --captions shows generated images below their captions, one row per caption.

A feature table is drawn as a scatter plot, colored by label: by its first two principal components, or with --embedding
tsne by an exact t-SNE of at most 3000 rows. A run folder, FILE.d, is drawn as one curve for each logged value.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from corecli.base.config import Common, Preset, option

SUMMARY = "draw images, features or a training run as a picture"
PLACE = 9
EXAMPLES = (
    ("Samples below the real images that they were made from", "syn --real DIR --out sheet.png"),
    ("The first images of a set", "DIR --columns 16 --out grid.png"),
    ("Nearest neighbors by the features of an encoder", "DIR --features z.safetensors --out neighbors.png"),
    (
        "The training images nearest to generated ones",
        "syn --features zs.safetensors --real DIR --real-features z.safetensors --out copies.png",
    ),
    ("Attention of a vision transformer", "DIR --encoder vit.safetensors --mass 0.6 --out attention.png"),
    ("Patch features of a vision transformer", "DIR --encoder vit.safetensors --picture pca --out pca.png"),
    ("Images below their captions", "syn --captions captions.jsonl --columns 4 --out captions.png"),
    ("Scatter plot of a feature table", "z.safetensors --embedding tsne --out scatter.png"),
    ("Curves of a training run", "f.safetensors.d --out curves.png"),
)
PRESETS: dict[str, Preset] = {}
OPTIONS = {  # picture -> the options that apply to it, beside those of all pictures
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
    real: str | None = option(None, help="real images that the groups were generated from", role="input", metavar="SET")
    features: Path | None = option(
        None, help="feature table of the set; draws nearest neighbors", role="input", metavar="FILE"
    )
    real_features: Path | None = option(
        None, help="feature table of --real; searches the neighbors among real images", role="input", metavar="FILE"
    )
    encoder: str | None = option(
        None, help="vision transformer; draws its attention or its patch features", role="input", metavar="FILE|NAME"
    )
    picture: Literal["attention", "pca"] | None = option(None, help="picture of the encoder (default: attention)")
    captions: Path | None = option(
        None, help="captions that the set was generated from; draws them above its images", role="input", metavar="FILE"
    )
    mass: float | None = option(
        None, help="show the patches with this share of a head's attention, such as 0.6", minimum=0, maximum=1
    )
    embedding: Literal["pca", "tsne"] | None = option(
        None, help="projection of a feature table to two dimensions (default: pca)"
    )
    columns: int | None = option(None, help="maximum number of columns (default: 10; curves: 3)", minimum=1)
    rows: int | None = option(None, help="maximum number of rows (default: 6)", minimum=1)
    image_size: int | None = option(None, help="resize the shorter side to N px and crop the center", minimum=1)
