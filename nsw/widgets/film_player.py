"""Short films whose frames are at hand: played, paused or dragged through; a few of their frames as the still."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.widgets import pictures
from nsw.widgets.frontend import Latest, emit, live

MANY = 4  # more films than these stand three in a row, so that all are seen together with the button below


def film(strips: Mapping[str, Sequence[Any]], alt: str, caption: str | None = None, fps: float = 8.0, stills: int = 4) -> None:
    """Show films side by side, frame by frame together, under one play button and one slider, as long as the shortest.

    They stand still until they are played. Without a live front end, `stills` frames of each film stand in a row of their own.

    Args:
        strips: title -> pictures (anything `pictures.to_array` takes), all of one size; a list or a `splat_probe.Film`.
        alt: what the films show.
        fps: frames a second while playing.
    """
    lengths = {name: len(frames) for name, frames in strips.items()}
    if not (n := min(lengths.values(), default=0)):
        raise InputError(f"film() needs films of at least one frame each, got {lengths}.")
    arrays = {name: [pictures.to_array(frames[i]) for i in range(n)] for name, frames in strips.items()}
    alt, sheet = pictures.need_alt(alt), _still(arrays, stills)
    under = f'<figcaption style="font-size:0.9em;opacity:0.85">{html.escape(caption)}</figcaption>' if caption else ""
    text = f'<figure style="margin:0.3em 0;max-width:100%">{pictures.img_tag(sheet, alt, sheet.shape[1])}{under}</figure>'
    widget = _player(arrays, alt, fps) if live() else None
    emit(pictures.bundle(sheet, alt, text), widget, metadata={"image/png": {"alt": alt, "width": sheet.shape[1]}})


def _still(arrays: Mapping[str, list[np.ndarray]], stills: int) -> np.ndarray:
    """Return evenly spread frames, a row for each film."""
    n = len(next(iter(arrays.values())))
    picks = sorted({i * n // min(stills, n) for i in range(min(stills, n))})
    tiles = {f"{name}, frame {i + 1}": frames[i] for name, frames in arrays.items() for i in picks}
    gap = 10
    room = (pictures.NOTEBOOK_WIDTH - gap * (len(picks) - 1)) // len(picks)
    tiles = {name: pictures.enlarged(tile, pictures.shown_width(tile.shape[1], room, room)) for name, tile in tiles.items()}
    return pictures.contact_sheet(tiles, len(picks), gap)


def _player(arrays: Mapping[str, list[np.ndarray]], alt: str, fps: float):
    """Return the live box: the pictures, a play button and a slider."""
    import ipywidgets

    from nsw.widgets.picture_widget import LivePicture

    n = len(next(iter(arrays.values())))
    room = pictures.NOTEBOOK_WIDTH if len(arrays) <= MANY else pictures.NOTEBOOK_WIDTH // 3 - 10
    views = [LivePicture(frames[0], f"{name}: {alt}", room) for name, frames in arrays.items()]
    titles = [ipywidgets.Label(name) for name in arrays]
    play = ipywidgets.Play(min=0, max=n - 1, value=0, interval=round(1000 / fps), repeat=True, show_repeat=False)
    slider = ipywidgets.IntSlider(min=0, max=n - 1, value=0, description="frame", layout={"width": "min(100%, 400px)"})
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def show(frame: int, coarse: bool) -> None:
        for view, frames in zip(views, arrays.values(), strict=True):
            view.show_image(frames[frame])

    latest = Latest(show, coarse=False)
    slider.observe(lambda change: latest.submit(change["new"]), names="value")
    columns = [ipywidgets.VBox([view, title]) for view, title in zip(views, titles, strict=True)]
    box = ipywidgets.VBox([ipywidgets.HBox(columns, layout={"flex_flow": "row wrap"}), ipywidgets.HBox([play, slider])])
    box.add_class("nsw-film")
    return box
