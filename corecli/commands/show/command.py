"""Check the options of `corecli show`, and draw."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from corecli.base import checkpoint
from corecli.base.config import flag
from corecli.base.errors import UsageError, about
from corecli.base.outcome import Outcome, produced
from corecli.commands.parts.inputs import check_encoder, check_header, check_replaceable, fitted, load_table
from corecli.commands.show.options import OPTIONS, Config
from corecli.commands.show.pictures import draw_attention, draw_captioned, draw_neighbors, draw_pca, draw_sheet
from corecli.commands.show.plots import LOG, draw_curves, draw_scatter, read_log
from corecli.data.captions import read_captions
from corecli.data.decode import square
from corecli.data.imageset import ImageSet, open_set
from corecli.engine.environment import find_launch

_SHEET_PX = 128  # side of the squares that images of different sizes are drawn as

IS_ALONE = True  # torch is imported only for pictures of features and encoders


def check(config: Config) -> dict[str, Any]:
    """Return what would be drawn. Errors: MissingInputError, DataError, CannotCreateError, UsageError."""
    check_replaceable(config.out, ("image",), force=config.force)
    picture = _picture(config)
    for name in sorted(set().union(*OPTIONS.values()) - OPTIONS[picture]):
        if getattr(config, name) is not None:
            hint = (
                "--features draws neighbors, --encoder draws attention" if picture in ("sheet", "attention") else None
            )
            raise UsageError(f"{flag(name)} does not apply to this picture ({picture})", hint=hint)
    plan = {"picture": picture, "out": str(config.out)}
    if picture == "scatter":
        return plan
    if picture == "curves":
        return plan | {"curves": list(read_log(Path(config.data)))}
    if config.encoder is not None:
        check_encoder(config.encoder)
    if config.captions is not None:
        read_captions(config.captions)
    if picture == "neighbors" and (config.real is None) != (config.real_features is None):
        raise UsageError("neighbors among real images need --real and --real-features")
    for path in (config.features, config.real_features):
        if path is not None:
            check_header(path, kind="features")
    sets = [_open(spec, config) for spec in (config.data, config.real) if spec is not None]
    return plan | {"num": len(sets[0].rows)}


def run(config: Config) -> Outcome:
    """Draw the picture, replacing an earlier one. Errors: DataError, CannotCreateError, UsageError."""
    if find_launch(os.environ).rank > 0:
        return Outcome()
    drawing = {
        "sheet": _sheet,
        "captions": _captions,
        "neighbors": _neighbors,
        "attention": _encoder,
        "pca": _encoder,
        "scatter": _scatter,
        "curves": _curves,
    }
    return produced(config.out, notes=drawing[_picture(config)](config))


def _picture(config: Config) -> str:
    """Return the name of the picture that the inputs determine."""
    path = Path(config.data)
    if (path / LOG).is_file():
        return "curves"
    header = checkpoint.find_header(path)
    if header is not None and header["kind"] == "features":
        return "scatter"
    if config.encoder is not None:
        return config.picture or "attention"
    return "neighbors" if config.features is not None else "captions" if config.captions is not None else "sheet"


def _sheet(config: Config) -> tuple[str, ...]:
    real = None if config.real is None else _open(config.real, config)
    with about(config.real):
        draw_sheet(config.out, _open(config.data, config), real, **_grid(config))
    return ()


def _neighbors(config: Config) -> tuple[str, ...]:
    sides = [(config.data, config.features), (config.real, config.real_features)]
    found = [(_open(spec, config), table) for spec, path in sides if spec and (table := load_table(path))]
    draw_neighbors(config.out, found[0], found[1] if found[1:] else None, **_grid(config))
    return ()


def _captions(config: Config) -> tuple[str, ...]:
    assert config.captions is not None
    with about(config.captions):
        draw_captioned(config.out, _open(config.data, config), read_captions(config.captions), **_grid(config))
    return ()


def _encoder(config: Config) -> tuple[str, ...]:
    from corecli.engine.dist import choose_device
    from corecli.engine.precision import place
    from corecli.nets.encoder import load_encoder

    encoder = place(load_encoder(str(config.encoder)), choose_device(config.device)).eval()
    data = fitted(open_set(config.data, image_size=config.image_size), encoder.spec["preprocessing"], config.data)
    if config.picture == "pca":
        draw_pca(config.out, data, encoder, **_grid(config))
    else:
        draw_attention(config.out, data, encoder, mass=config.mass, **_grid(config))
    return ()


def _scatter(config: Config) -> tuple[str, ...]:
    table = load_table(Path(config.data))
    assert table is not None
    return draw_scatter(config.out, table, embedding=config.embedding or "pca", shown=not config.quiet)


def _curves(config: Config) -> tuple[str, ...]:
    draw_curves(config.out, Path(config.data), columns=config.columns or 3)
    return ()


def _open(spec: str, config: Config) -> ImageSet:
    data = open_set(spec, image_size=config.image_size)
    return data.fitted(square(_SHEET_PX)) if data.is_mixed else data


def _grid(config: Config) -> dict[str, int]:
    return {"columns": config.columns or 10, "rows": config.rows or 6}
