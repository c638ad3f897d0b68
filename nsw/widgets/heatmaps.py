"""Maps of one number per pixel, in a colour scale that colour-blind readers can read, with its bar and unit."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.renderers.heat_colours import cividis, coloured
from nsw.widgets import pictures
from nsw.widgets.frontend import emit

_BAR, _GAP, _TEXT = 16, 12, 110  # bar width, gap, room for its numbers, CSS pixels
ROOM = pictures.NOTEBOOK_WIDTH - _BAR - _GAP - _TEXT  # what is left for the map


def heat(map2d: Any, alt: str, unit: str = "", title: str = "", low: float | None = None, high: float | None = None) -> None:
    """Show a map [H, W] of numbers with a colour bar.

    Args:
        map2d: tensor or array [H, W], or [1, H, W]; NaN is drawn grey ("no value").
        alt: one sentence.
        unit: written beside the bar's numbers.
        low, high: values of the scale's ends; by default the finite minimum and maximum.
    """
    array = map2d.detach().cpu().numpy() if hasattr(map2d, "detach") else np.asarray(map2d)
    array = array[0] if array.ndim == 3 and array.shape[0] == 1 else array
    if array.ndim != 2 or not array.size:
        raise InputError(f"heat() got shape {list(array.shape)}: expected one map [H, W].")
    array = array.astype(np.float64)
    low, high = scale([array], low, high)
    colours = coloured(np.where(np.isinf(array), np.sign(array) * 1e300, array), low, high)
    emit_scaled(colours, pictures.shown_width(array.shape[1], ROOM), low, high, unit, title, alt)


def scale(arrays: Sequence[Any], low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Return the ends of a scale for some arrays: those given, else the finite minimum and maximum of all."""
    finite = np.concatenate([array[np.isfinite(array)] for array in (np.asarray(a, dtype=np.float64) for a in arrays)])
    least, most = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    return float(least if low is None else low), float(most if high is None else high)


def emit_scaled(colours: np.ndarray, width: int, low: float, high: float, unit: str, title: str, alt: str) -> None:
    """Display a picture that is coloured by `coloured`, `width` pixels wide, beside the bar of its scale."""
    alt = pictures.need_alt(alt)
    still = _with_bar(pictures.enlarged(colours, width), low, high, unit, title)
    emit(
        pictures.bundle(still, alt, _html(colours, width, low, high, unit, title, alt)),
        metadata={"image/png": {"alt": alt, "width": still.shape[1]}},
    )


def _ticks(low: float, high: float, unit: str) -> list[str]:
    """Return the labels at the top, the middle and the bottom of the bar."""
    unit = f" {unit}" if unit else ""
    return [f"{value:.3g}{unit}" for value in (high, 0.5 * (low + high), low)]


def _html(colours: np.ndarray, width: int, low: float, high: float, unit: str, title: str, alt: str) -> str:
    height = round(width * colours.shape[0] / colours.shape[1])
    bar = np.ascontiguousarray(cividis()[::-1][:, None])
    ticks = "".join(f"<span>{html.escape(tick)}</span>" for tick in _ticks(low, high, unit))
    heading = f'<figcaption style="font-weight:600;padding-bottom:0.3em">{html.escape(title)}</figcaption>' if title else ""
    return (
        f'<figure style="margin:0.3em 0">{heading}<div style="display:flex;gap:{_GAP}px">{pictures.img_tag(colours, alt, width)}'
        f'<img src="{pictures.data_url(pictures.png_bytes(bar))}" alt="" style="width:{_BAR}px;height:{height}px">'
        f'<div style="display:flex;flex-direction:column;justify-content:space-between;height:{height}px;font-size:0.85em">{ticks}'
        "</div></div></figure>"
    )


def _with_bar(array: np.ndarray, low: float, high: float, unit: str, title: str) -> np.ndarray:
    """Return the picture with title, bar and numbers drawn beside it, for places that show no HTML."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = array.shape[:2]
    title_font = ImageFont.load_default(16)
    lines = pictures.wrapped(pictures.drawable(title), width + _GAP + _BAR + _TEXT, title_font) if title else []
    top = 8 + 20 * len(lines)
    sheet = Image.new("RGB", (width + _GAP + _BAR + _TEXT, top + height + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    sheet.paste(Image.fromarray(array), (0, top))
    bar = cividis()[::-1][(np.arange(height) * 255 // max(height - 1, 1))][:, None].repeat(_BAR, 1)
    sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (width + _GAP, top))
    for i, tick in enumerate(_ticks(low, high, unit)):
        draw.text(
            (width + _GAP + _BAR + 6, top + (height - 1) * i / 2), pictures.drawable(tick), fill="black", font=font, anchor="lm"
        )
    for i, line in enumerate(lines):
        draw.text((0, 4 + 20 * i), line, fill="black", font=title_font)
    return np.asarray(sheet)
