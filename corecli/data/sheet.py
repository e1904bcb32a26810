"""Contact sheets: a grid of images in one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corecli.base.files import atomic_write

if TYPE_CHECKING:
    import torch

_GAP_PX = 2
_SHOWN_PX = 64  # small images are enlarged to about this, in whole multiples, so that pixels stay pixels
_CAPTION_PX = 14
_INK = (70, 70, 76)


def write_sheet(
    path: Path,
    images: torch.Tensor,
    *,
    columns: int,
    head_rows: int = 0,
    head_columns: int = 0,
    captions: Sequence[str] = (),
    shown_px: int = _SHOWN_PX,
) -> None:
    """Write images (uint8 [N, 3, H, W]) row by row as a PNG grid, with a caption under each where there are captions.

    The `head_rows` top rows and the `head_columns` left columns are set apart by a wider gap.
    """
    num, _, height, width = images.shape
    scale = max(1, round(shown_px / max(height, width)))
    below = _CAPTION_PX if captions else 0
    rows = -(-num // columns)
    step_y, step_x = height * scale + _GAP_PX + below, width * scale + _GAP_PX
    head_y, head_x = (4 * _GAP_PX if heads else 0 for heads in (head_rows, head_columns))
    sheet = np.full((rows * step_y + _GAP_PX + head_y, columns * step_x + _GAP_PX + head_x, 3), 255, dtype=np.uint8)
    corners = []
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        y = row * step_y + _GAP_PX + (head_y if row >= head_rows else 0)
        x = column * step_x + _GAP_PX + (head_x if column >= head_columns else 0)
        sheet[y : y + height * scale, x : x + width * scale] = image.repeat(scale, axis=0).repeat(scale, axis=1)
        corners.append((x + width * scale // 2, y + height * scale + below // 2))
    picture = Image.fromarray(sheet)
    for corner, caption in zip(corners, captions, strict=False):
        ImageDraw.Draw(picture).text(corner, caption, fill=_INK, font=ImageFont.load_default(11), anchor="mm")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
