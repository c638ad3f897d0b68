"""Pictures in a notebook: one, or a grid of them, each with alt text and with its pixels visible."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.widgets.frontend import emit

NOTEBOOK_WIDTH = 760  # CSS pixels that a notebook column shows without scrolling
MIN_WIDTH = 320  # smaller pictures are enlarged by whole factors
_FIGURE = "margin:0.3em 0;max-width:100%"
_CAPTION = "font-size:0.9em;opacity:0.85;padding-top:0.3em;line-height:1.35;overflow-wrap:anywhere"


def to_array(image: Any) -> np.ndarray:
    """Return a picture as uint8 [H, W, 3].

    Args:
        image: a `Render` (its first camera), tensor or array [H, W], [H, W, 1|3|4], or [1, H, W, 1|3|4], with floats in
            [0, 1] (clamped), uint8 or bool; or a PIL image. An alpha channel is composited over white. Values that are
            not finite are painted magenta, so that they are seen.

    >>> to_array(np.ones((2, 3))).shape
    (2, 3, 3)
    """
    if hasattr(image, "rgb") and hasattr(image, "alpha"):  # a Render
        image = image.rgb[0]
    if hasattr(image, "convert") and hasattr(image, "tobytes"):  # a PIL picture
        image = np.asarray(image.convert("RGBA" if "A" in image.getbands() else "RGB"))
    if hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
    array = np.asarray(image)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"A picture of shape {list(np.shape(image))} cannot be shown: expected [H, W], [H, W, 3] or [H, W, 4], channels last."
        )
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        bad = ~np.isfinite(array).all(-1)
        array = (np.clip(np.nan_to_num(array), 0, 1) * 255 + 0.5).astype(np.uint8)
    else:
        bad = None
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255
        array = (array[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    if bad is not None and bad.any():
        array = array.copy()
        array[bad] = (255, 0, 255)
    return array


def png_bytes(array: np.ndarray) -> bytes:
    """Return a uint8 [H, W, 3] array as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """Return PNG bytes as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def shown_width(width: int, room: int = NOTEBOOK_WIDTH, least: int = MIN_WIDTH) -> int:
    """Return the CSS width at which a picture is shown: its own, a whole multiple, or `room` when it is wider.

    >>> shown_width(100), shown_width(500), shown_width(2000)
    (400, 500, 760)
    """
    if width >= room:
        return room
    return width * max(1, min(-(-least // width), room // width))


def enlarged(array: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """Return the picture `width` pixels wide: whole-pixel copies upwards, area filter downwards."""
    from PIL import Image

    height = height or max(1, round(array.shape[0] * width / array.shape[1]))
    if width % array.shape[1] == 0 and height * array.shape[1] == width * array.shape[0]:
        factor = width // array.shape[1]
        return array.repeat(factor, axis=0).repeat(factor, axis=1)
    filter_ = Image.Resampling.NEAREST if width > array.shape[1] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(array).resize((width, height), filter_))


def img_tag(array: np.ndarray, alt: str, css_width: int) -> str:
    """Return an HTML image of the array at its native size, enlarged by the browser without smoothing."""
    rows, columns = array.shape[:2]
    smooth = "auto" if css_width <= columns else "pixelated"
    return (
        f'<img src="{data_url(png_bytes(array))}" alt="{html.escape(alt, quote=True)}" width="{css_width}" decoding="sync" '
        f'style="image-rendering:{smooth};aspect-ratio:{columns}/{rows};max-width:100%;height:auto;display:block">'
    )


def bundle(array: np.ndarray, alt: str, html_text: str) -> dict[str, str]:
    """Return the mime bundle of a still: HTML with alt text, the picture itself, and the alt text alone."""
    still = base64.b64encode(png_bytes(array)).decode("ascii")
    return {"text/html": html_text, "image/png": still, "text/plain": alt}


def need_alt(alt: str) -> str:
    """Return the alt text, or refuse a figure that says nothing to a reader who cannot see it."""
    if not isinstance(alt, str) or not alt.strip():
        raise InputError('Every figure needs alt text: pass alt="what a reader should see in it".')
    return alt.strip()


def show(image: Any, alt: str, caption: str | None = None) -> None:
    """Show a picture or a plotly figure with alt text and, if given, a caption under it.

    Args:
        image: anything `to_array` takes, or a plotly figure.
        alt: what the picture shows, one sentence.
        caption: visible text under it.
    """
    if hasattr(image, "to_plotly_json"):
        from nsw.widgets.charts import show_figure

        show_figure(image, alt, caption)
        return
    emit_picture(to_array(image), need_alt(alt), caption)


def emit_picture(array: np.ndarray, alt: str, caption: str | None = None, widget: Any = None) -> None:
    """Display one picture as a still, under `widget` when a front end is live."""
    width = shown_width(array.shape[1])
    under = f'<figcaption style="{_CAPTION}">{html.escape(caption)}</figcaption>' if caption else ""
    text = f'<figure style="{_FIGURE}">{img_tag(array, alt, width)}{under}</figure>'
    emit(bundle(enlarged(array, width), alt, text), widget, metadata={"image/png": {"alt": alt, "width": width}})


def images(pictures: Mapping[str, Any], alt: str, columns: int | None = None, caption: str | None = None) -> None:
    """Show pictures side by side with their titles.

    Args:
        pictures: title -> picture (anything `to_array` takes).
        alt: one sentence for the whole grid.
        columns: pictures in a row; by default all up to four.
    """
    if not pictures:
        raise InputError("images() got no picture to show: pass {title: picture, ...}.")
    arrays = {title: to_array(image) for title, image in pictures.items()}
    columns = max(1, min(columns or 4, len(arrays)))
    gap = 10
    room = (NOTEBOOK_WIDTH - gap * (columns - 1)) // columns
    widths = {title: shown_width(array.shape[1], room, least=min(room, 240)) for title, array in arrays.items()}
    cells = "".join(
        f'<div style="width:{widths[title]}px;max-width:100%">{img_tag(array, f"{title}: {alt}", widths[title])}'
        f'<div style="{_CAPTION};text-align:center">{html.escape(title)}</div></div>'
        for title, array in arrays.items()
    )
    under = f'<figcaption style="{_CAPTION}">{html.escape(caption)}</figcaption>' if caption else ""
    column = max(widths.values())
    text = (
        f'<figure style="{_FIGURE}" role="group" aria-label="{html.escape(need_alt(alt), quote=True)}">'
        f'<div style="display:grid;grid-template-columns:repeat({columns},{column}px);gap:{gap}px;align-items:start">{cells}</div>'
        f"{under}</figure>"
    )
    tiles = {title: enlarged(array, widths[title]) for title, array in arrays.items()}
    sheet = contact_sheet(tiles, columns, gap)
    emit(bundle(sheet, alt, text), metadata={"image/png": {"alt": alt, "width": sheet.shape[1]}})


def titled(pictures: Mapping[str, Any], columns: int | None = None, gap: int = 10) -> np.ndarray:
    """Return pictures side by side under their titles as one picture, for a slider that changes several at once.

    Args:
        pictures: title -> picture (anything `to_array` takes); titles may hold what was measured.
        columns: pictures in a row; by default all up to four.

    Returns:
        uint8 [H, W, 3].

    >>> titled({"left": np.zeros((4, 4)), "right": np.ones((4, 4))}).shape[2]
    3
    """
    columns = max(1, min(columns or 4, len(pictures)))
    room = (NOTEBOOK_WIDTH - gap * (columns - 1)) // columns
    arrays = {title: to_array(image) for title, image in pictures.items()}
    tiles = {title: enlarged(array, shown_width(array.shape[1], room, least=min(room, 240))) for title, array in arrays.items()}
    return contact_sheet(tiles, columns, gap)


def contact_sheet(tiles: Mapping[str, np.ndarray], columns: int, gap: int = 10) -> np.ndarray:
    """Return one picture of titled tiles on white, row by row."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(15)
    tiles = {drawable(title): array for title, array in tiles.items()}
    items = list(tiles.items())
    cell_width = max(array.shape[1] for array in tiles.values())
    lines = {title: wrapped(title, cell_width, font) for title in tiles}
    title_height = 20 * max(len(text) for text in lines.values()) + 6
    rows = [items[i : i + columns] for i in range(0, len(items), columns)]
    heights = [max(array.shape[0] for _, array in row) + title_height for row in rows]
    sheet = Image.new("RGB", (columns * cell_width + gap * (columns - 1), sum(heights) + gap * (len(rows) - 1)), "white")
    draw = ImageDraw.Draw(sheet)
    y = 0
    for row, height in zip(rows, heights, strict=True):
        for i, (title, array) in enumerate(row):
            x = i * (cell_width + gap)
            sheet.paste(Image.fromarray(array), (x, y))
            for n, line in enumerate(lines[title]):
                centre = x + (array.shape[1] - draw.textlength(line, font=font)) / 2
                draw.text((max(x, centre), y + array.shape[0] + 4 + 20 * n), line, fill="black", font=font)
        y += height + gap
    return np.asarray(sheet)


def wrapped(text: str, width: int, font: Any) -> list[str]:
    """Return the text broken at spaces into lines that fit `width` pixels; a word that is wider, as a path may be, is cut."""
    lines: list[str] = []
    words = text.split()[::-1] or [""]
    while words:
        word = words.pop()
        if (whole := next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width), 1)) < len(word):
            words.append(word[whole:])
            word = word[:whole]
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


def drawable(text: str) -> str:
    """Return text that Pillow's built-in font can draw: letters beyond Latin-1 are named.

    >>> drawable("\u03c3(t) in dB")
    'sigma(t) in dB'
    """
    import unicodedata

    def name(character: str) -> str:
        known = {"\u2212": "-", "\u2013": "-", "\u2192": "->", "\u2026": "...", "\u2264": "<=", "\u2265": ">="}
        if ord(character) < 256 or character in known:
            return known.get(character, character)
        return unicodedata.name(character, "?").rpartition(" ")[2].lower()

    return "".join(name(character) for character in text)
