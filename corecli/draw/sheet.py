"""Contact sheets: a grid of images in one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corecli.base.files import atomic_write

_GAP_PX = 2
_SHOWN_PX = 64  # small images are enlarged to about this size, by a whole factor
_CAPTION_PX = 14
_LINE_PX, _LEAST_WIDTH_PX = 16, 240  # for captions above images
_INK = (70, 70, 76)


def write_sheet(
    path: Path,
    images: np.ndarray,
    *,
    columns: int,
    head_rows: int = 0,
    head_columns: int = 0,
    captions: Sequence[str] = (),
    shown_px: int = _SHOWN_PX,
) -> None:
    """Write images, uint8 [N, 3, H, W], row by row as a grid in a PNG file.

    captions: texts below the images; optional. head_rows, head_columns: the number of top rows and left columns that a
    wider gap separates from the others. shown_px: approximate size to which small images are enlarged.
    """
    num, _, height, width = images.shape
    scale = max(1, round(shown_px / max(height, width)))
    below = _CAPTION_PX if captions else 0
    rows = -(-num // columns)
    step_y, step_x = height * scale + _GAP_PX + below, width * scale + _GAP_PX
    head_y, head_x = (4 * _GAP_PX if heads else 0 for heads in (head_rows, head_columns))
    sheet = np.full((rows * step_y + _GAP_PX + head_y, columns * step_x + _GAP_PX + head_x, 3), 255, dtype=np.uint8)
    corners = []
    for index, image in enumerate(images.transpose(0, 2, 3, 1)):
        row, column = divmod(index, columns)
        y = row * step_y + _GAP_PX + (head_y if row >= head_rows else 0)
        x = column * step_x + _GAP_PX + (head_x if column >= head_columns else 0)
        sheet[y : y + height * scale, x : x + width * scale] = image.repeat(scale, axis=0).repeat(scale, axis=1)
        corners.append((x + width * scale // 2, y + height * scale + below // 2))
    picture = Image.fromarray(sheet)
    for corner, caption in zip(corners, captions, strict=False):
        ImageDraw.Draw(picture).text(corner, caption, fill=_INK, font=ImageFont.load_default(11), anchor="mm")
    _save(path, picture)


def write_captioned(path: Path, lines: Sequence[tuple[str, np.ndarray]], *, shown_px: int = 2 * _SHOWN_PX) -> None:
    """Write rows of images, uint8 [n, 3, H, W] each, as a PNG file, with a wrapped caption above each row."""
    _, _, height, width = lines[0][1].shape
    scale = max(1, round(shown_px / max(height, width)))
    step = width * scale + _GAP_PX
    whole = max(_LEAST_WIDTH_PX, _GAP_PX + step * max(len(images) for _, images in lines))
    font = ImageFont.load_default(12)
    wrapped = [_wrapped(text, font, whole - 4 * _GAP_PX) for text, _ in lines]
    row_px = height * scale + 4 * _GAP_PX
    picture = Image.new("RGB", (whole, sum(row_px + _LINE_PX * len(text) for text in wrapped)), "white")
    y = 0
    for text, (_, images) in zip(wrapped, lines, strict=True):
        ImageDraw.Draw(picture).multiline_text((2 * _GAP_PX, y + _GAP_PX), "\n".join(text), fill=_INK, font=font)
        y += _LINE_PX * len(text) + _GAP_PX
        for number, image in enumerate(images.transpose(0, 2, 3, 1)):
            enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
            picture.paste(Image.fromarray(enlarged), (_GAP_PX + step * number, y))
        y += row_px - _GAP_PX
    _save(path, picture)


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Break a text between words into lines of at most `width` px."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _save(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
