"""Scatter plots and curves as PNG files, drawn with Pillow at three times the size and reduced for smooth lines."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corecli.base.files import atomic_write
from corecli.base.rng import numpy_generator

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom in px

_SCALE = 3
_INK, _FAINT, _GRID, _GRAY = (40, 40, 46), (120, 120, 128), (228, 228, 232), (176, 176, 182)
_PALETTE: tuple[Color, ...] = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (188, 189, 34),
    (23, 190, 207),
    (90, 90, 96),
)
_MOST_IN_LEGEND, _LONGEST_NAME = 30, 24


def write_scatter(
    path: Path,
    points: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str],
    axes: tuple[str, str] = ("", ""),
    title: str = "",
) -> None:
    """Plot points [N, 2] colored by label [N], with a legend of `names` and equal axes; label -1 (unknown) is gray."""
    known = sorted(set(labels[labels >= 0].tolist()))
    colors = dict(zip(known, class_colors(len(known)), strict=True))
    entries = _legend([(_name(names, label), colors[label]) for label in known], unknown=bool((labels < 0).any()))
    widest = max((_font(13).getlength(name) / _SCALE for name, _ in entries), default=-36)
    canvas = _Canvas(round(756 + widest), 740 if any(axes) else 714)
    box = (50, 50, 690, 690)
    canvas.rectangle(box, outline=_GRID)
    canvas.text((50, 26), title, size=16)
    canvas.text((370, 716), axes[0], size=13, color=_FAINT, anchor="mm")
    canvas.text_upwards((26, 370), axes[1], size=13, color=_FAINT)
    middle, reach = (points.max(0) + points.min(0)) / 2, max(float(np.ptp(points, axis=0).max()), 1e-12) / 2
    places = np.array([370, 370]) + (points - middle) / reach * np.array([302, -302])
    radius = float(np.clip(90 / math.sqrt(len(points)), 1.4, 4))
    for row in numpy_generator(0, "scatter").permutation(
        len(points)
    ):  # in random order, so that no class covers the others
        canvas.disk(places[row], radius, colors.get(int(labels[row]), _GRAY))
    for index, (name, color) in enumerate(entries):
        if color is not None:
            canvas.disk((714, 62 + 20 * index), 5, color, alpha=255)
        canvas.text((728, 62 + 20 * index), name, size=13)
    canvas.save(path)


def write_curves(path: Path, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, columns: int) -> None:
    """Plot each named curve (steps, values) in a panel of its own, with `columns` panels per row."""
    width, height = 400, 270
    columns = min(columns, len(curves))
    canvas = _Canvas(columns * width, -(-len(curves) // columns) * height)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        row, column = divmod(index, columns)
        left, top = column * width, row * height
        canvas.text((left + 62, top + 24), name.replace("_", " "), size=15)
        canvas.text((left + width - 20, top + 24), f"{values[-1]:.4g}", size=14, color=_FAINT, anchor="rm")
        _panel(canvas, (left + 62, top + 42, left + width - 20, top + height - 36), steps, values, _PALETTE[index % 10])
    canvas.save(path)


def class_colors(num: int) -> list[Color]:
    """Return distinct colors for `num` classes: a palette of ten, or hues at steps of the golden angle."""
    if num <= len(_PALETTE):
        return list(_PALETTE[:num])
    hues = [(index * 0.618034) % 1 for index in range(num)]
    shades = [(0.75, 0.80), (0.55, 0.62), (0.95, 0.92)]
    mixed = [colorsys.hsv_to_rgb(hue, *shades[index % 3]) for index, hue in enumerate(hues)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in mixed]


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _legend(classes: list[tuple[str, Color]], *, unknown: bool) -> list[tuple[str, Color | None]]:
    """Return (text, color) of each legend entry: classes, the number of omitted ones, images without a label."""
    entries: list[tuple[str, Color | None]] = [
        (name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}...", color)
        for name, color in classes[:_MOST_IN_LEGEND]
    ]
    if len(classes) > _MOST_IN_LEGEND:
        entries.append((f"and {len(classes) - _MOST_IN_LEGEND} more", None))
    return [*entries, ("no label", _GRAY)] if unknown and classes else entries


def _panel(canvas: _Canvas, box: Box, steps: Sequence[float], values: Sequence[float], color: Color) -> None:
    left, top, right, bottom = box
    (x0, x1), (y0, y1) = _range(steps, margin=0), _range(values, margin=0.06)
    for tick in _ticks(y0, y1):
        y = bottom - (tick - y0) / (y1 - y0) * (bottom - top)
        canvas.line([(left, y), (right, y)], _GRID, 1)
        canvas.text((left - 8, y), _short(tick), size=12, color=_FAINT, anchor="rm")
    for tick in _ticks(x0, x1):
        x = left + (tick - x0) / (x1 - x0) * (right - left)
        canvas.text((x, bottom + 16), _short(tick), size=12, color=_FAINT, anchor="mm")
    canvas.line([(left, bottom), (right, bottom)], _GRAY, 1)
    places = [
        (left + (x - x0) / (x1 - x0) * (right - left), bottom - (y - y0) / (y1 - y0) * (bottom - top))
        for x, y in zip(steps, values, strict=True)
    ]
    canvas.line(places, color, 2)
    canvas.disk(places[-1], 3, color, alpha=255)


def _range(values: Sequence[float], *, margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
    return (low - margin * spread, high + margin * spread) if high > low else (low - spread / 2, high + spread / 2)


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers within the range."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


class _Canvas:
    """A white image. Positions and sizes are in px of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width * _SCALE, height * _SCALE), "white")
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        """Draw a line through the points."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=color, width=round(width * _SCALE), joint="curve")

    def rectangle(self, box: Box, *, outline: Color) -> None:
        """Draw a thin frame."""
        self._draw.rectangle([edge * _SCALE for edge in box], outline=outline, width=_SCALE)

    def disk(self, center: Sequence[float], radius: float, color: Color, *, alpha: int = 170) -> None:
        """Draw a filled circle of opacity `alpha`, 0 to 255."""
        x, y = (float(place) for place in center)
        box = [(x - radius) * _SCALE, (y - radius) * _SCALE, (x + radius) * _SCALE, (y + radius) * _SCALE]
        self._draw.ellipse(box, fill=(*color, alpha))

    def text(
        self, place: tuple[float, float], text: str, *, size: int, color: Color = _INK, anchor: str = "lm"
    ) -> None:
        """Draw text whose point `anchor`, named as in Pillow, is at `place`."""
        x, y = place
        self._draw.text((x * _SCALE, y * _SCALE), text, fill=color, font=_font(size), anchor=anchor)

    def text_upwards(self, center: tuple[float, float], text: str, *, size: int, color: Color) -> None:
        """Draw text that reads upwards."""
        left, top, right, bottom = _font(size).getbbox(text, anchor="lt")
        mask = Image.new("L", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
        ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=_font(size), anchor="lt")
        turned = mask.rotate(90, expand=True)
        corner = (round(center[0] * _SCALE - turned.width / 2), round(center[1] * _SCALE - turned.height / 2))
        self._image.paste(color, (*corner, corner[0] + turned.width, corner[1] + turned.height), turned)

    def save(self, path: Path) -> None:
        """Write the picture in its final size as a PNG file."""
        small = self._image.resize(
            (self._image.width // _SCALE, self._image.height // _SCALE), Image.Resampling.LANCZOS
        )
        buffer = io.BytesIO()
        small.save(buffer, format="PNG")
        with atomic_write(path) as file:
            file.write(buffer.getvalue())


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)
