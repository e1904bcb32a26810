"""Draw images, features or training runs as one picture; what is given says which.

SET alone is a contact sheet. A set whose groups have several members, or any set with --real, is drawn by group: one
column a group, its real image on top and its synthetic members below, as in CORE's Figure 7. Other sets are drawn as a
plain grid.

SET with --features draws nearest neighbours: in every row an image, then those nearest to it by the cosine of their
features, with the cosine. They are searched in the set itself, or with --real in the real images, whose features are
in --real-features: are generated images copies?

SET with --encoder draws attention: in every row an image, then where the class token of the last block of a vision
transformer looks, head by head, as heat, or with --mass as DINO does: the patches in view together hold that share of
the head's attention.

SET with --encoder and --picture pca draws patches: below every image the principal components of its patches as
colours, which mean the same in all images, on what the first component tells to be foreground. Images are taken as
large as they are, or as --image-size says.

SET with --captions draws what was made from captions: above the images of a group the caption it is named after.

A feature table is scattered in the plane, coloured by label: along its two principal components, or with --embedding
tsne so that near rows are near (exact t-SNE of up to 3000 rows). The folder of a training run, FILE.d, is drawn as
curves of all it has logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from corecli.base import checkpoint
from corecli.base.config import Common, Preset, flag, option
from corecli.base.errors import UsageError, about
from corecli.base.files import sniff
from corecli.base.outcome import Outcome, produced
from corecli.commands import _inputs
from corecli.commands._show_images import draw_attention, draw_captioned, draw_neighbours, draw_pca, draw_sheet
from corecli.commands._show_plots import LOG, draw_curves, draw_scatter, read_log
from corecli.data.captions import read_captions
from corecli.data.imageset import ImageSet, open_set

if TYPE_CHECKING:
    from corecli.engine.dist import World

EXAMPLES = (
    ("Samples below the real images they were made from", "syn --real DIR --out sheet.png"),
    ("The first images of a set", "DIR --columns 16 --out grid.png"),
    ("What an encoder finds alike", "DIR --features z.safetensors --out neighbours.png"),
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
    "neighbours": {"features", "real", "real_features", "columns", "rows", "image_size"},
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
        None, help="features of the set, to draw nearest neighbours", role="input", metavar="FILE"
    )
    real_features: Path | None = option(
        None, help="features of --real, to find neighbours among them", role="input", metavar="FILE"
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


def check(config: Config) -> dict[str, Any]:
    """What would be drawn. Errors: MissingInputError, DataError, CannotCreateError, UsageError."""
    _inputs.check_replaceable(config.out, ("image",), force=config.force)
    picture = _picture(config)
    for name in sorted(set().union(*OPTIONS.values()) - OPTIONS[picture]):
        if getattr(config, name) is not None:
            hint = "--features draws neighbours, --encoder attention" if picture in ("sheet", "attention") else None
            raise UsageError(f"{flag(name)} does not apply to this picture ({picture})", hint=hint)
    plan = {"picture": picture, "out": str(config.out)}
    if picture == "scatter":
        return plan
    if picture == "curves":
        return plan | {"curves": list(read_log(Path(config.data)))}
    if config.encoder is not None:
        _inputs.check_encoder(config.encoder)
    if config.captions is not None:
        read_captions(config.captions)
    if picture == "neighbours" and (config.real is None) != (config.real_features is None):
        raise UsageError("neighbours among real images need both --real and --real-features")
    for path in (config.features, config.real_features):
        if path is not None:
            _inputs.check_header(path, kind="features")
    sets = [_open(spec, config) for spec in (config.data, config.real) if spec is not None]
    return plan | {"num": len(sets[0].rows)}


def run(config: Config, world: World) -> Outcome:
    """Draw the picture, replacing an earlier one. Errors: DataError, CannotCreateError, UsageError."""
    drawing = {
        "sheet": _sheet,
        "captions": _captions,
        "neighbours": _neighbours,
        "attention": _encoder,
        "pca": _encoder,
        "scatter": _scatter,
        "curves": _curves,
    }
    return produced(config.out, notes=drawing[_picture(config)](config, world))


def _picture(config: Config) -> str:
    """The name of the picture that what is given makes."""
    path = Path(config.data)
    if (path / LOG).is_file():
        return "curves"
    if path.is_file() and sniff(path) in ("safetensors", "torch"):
        header = checkpoint.read_header(path)
        if header is not None and header["kind"] == "features":
            return "scatter"
    if config.encoder is not None:
        return config.picture or "attention"
    return "neighbours" if config.features is not None else "captions" if config.captions is not None else "sheet"


def _sheet(config: Config, _: World) -> tuple[str, ...]:
    real = None if config.real is None else _open(config.real, config)
    with about(config.real):
        draw_sheet(config.out, _open(config.data, config), real, **_grid(config))
    return ()


def _neighbours(config: Config, _: World) -> tuple[str, ...]:
    sides = [(config.data, config.features), (config.real, config.real_features)]
    found = [(_open(spec, config), table) for spec, path in sides if spec and (table := _inputs.load_table(path))]
    draw_neighbours(config.out, found[0], found[1] if found[1:] else None, **_grid(config))
    return ()


def _captions(config: Config, _: World) -> tuple[str, ...]:
    assert config.captions is not None
    with about(config.captions):
        draw_captioned(config.out, _open(config.data, config), read_captions(config.captions), **_grid(config))
    return ()


def _encoder(config: Config, world: World) -> tuple[str, ...]:
    from corecli.engine.precision import place
    from corecli.nets.encoder import load_encoder

    encoder = place(load_encoder(str(config.encoder)), world.device).eval()
    data = _open(config.data, config)
    if config.picture == "pca":
        draw_pca(config.out, data, encoder, **_grid(config))
    else:
        draw_attention(config.out, data, encoder, mass=config.mass, **_grid(config))
    return ()


def _scatter(config: Config, world: World) -> tuple[str, ...]:
    table = _inputs.load_table(Path(config.data))
    assert table is not None
    shown = world.is_main and not config.quiet
    return draw_scatter(config.out, table, embedding=config.embedding or "pca", shown=shown)


def _curves(config: Config, _: World) -> tuple[str, ...]:
    draw_curves(config.out, Path(config.data), columns=config.columns or 3)
    return ()


def _open(spec: str, config: Config) -> ImageSet:
    return open_set(spec, image_size=config.image_size)


def _grid(config: Config) -> dict[str, int]:
    return {"columns": config.columns or 10, "rows": config.rows or 6}
