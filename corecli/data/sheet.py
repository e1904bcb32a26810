"""Contact sheets: a grid of images in one PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from corecli.base.files import atomic_write

if TYPE_CHECKING:
    import torch

_GAP_PX = 2
_SHOWN_PX = 64  # small images are enlarged to about this, in whole multiples, so that pixels stay pixels


def write_sheet(path: Path, images: torch.Tensor, *, columns: int, head_rows: int = 0) -> None:
    """Write images (uint8 [N, 3, H, W]) row by row as a PNG grid; `head_rows` top rows are set apart by a wider gap."""
    num, _, height, width = images.shape
    scale = max(1, round(_SHOWN_PX / max(height, width)))
    rows = -(-num // columns)
    step_y, step_x = height * scale + _GAP_PX, width * scale + _GAP_PX
    head_gap = 4 * _GAP_PX if head_rows else 0
    sheet = np.full((rows * step_y + _GAP_PX + head_gap, columns * step_x + _GAP_PX, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        y = row * step_y + _GAP_PX + (head_gap if row >= head_rows else 0)
        x = column * step_x + _GAP_PX
        sheet[y : y + height * scale, x : x + width * scale] = image.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())
