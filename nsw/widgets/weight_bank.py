"""An equaliser: one upright slider for each weight of a few short lists, and a chart that follows them."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from nsw.errors import InputError
from nsw.widgets import pictures
from nsw.widgets.frontend import Latest, failure_line, live
from nsw.widgets.slider_panel import _picker, control, emit_still, figure_view, set_figure


def weight_sliders(
    draw: Callable[[int, int, list[list[float]]], Any],
    lists: Sequence[str],
    n: int,
    alt: str,
    pick: Any,
    reach: float = 10.0,
) -> None:
    """Show the chart of one pixel and n sliders for each of some lists of weights; what a slider says is added to a weight.

    A drop-down says whose sliders are shown; those of the other lists keep their values. A button puts all back to zero. Only
    the newest values are drawn.

    Args:
        draw: from row, column and the changes, len(lists) x n numbers, to a plotly figure.
        lists: names of the lists.
        n: weights of each list.
        alt: what the chart shows.
        pick: the picture whose pixel is chosen, by a click or with two sliders; the middle one at first.
        reach: largest change of a weight, either way.
    """
    if not lists or n < 1 or not reach > 0:
        raise InputError(f"weight_sliders() needs a list, a weight and a reach, got {list(lists)}, n = {n}, reach = {reach}.")
    alt, pick = pictures.need_alt(alt), pictures.to_array(pick)
    row, column = (side // 2 for side in pick.shape[:2])
    changes = [[0.0] * n for _ in lists]
    first = draw(row, column, changes)
    emit_still(first, alt, None, _panel(draw, list(lists), changes, first, alt, pick, reach) if live() else None)


def _panel(draw: Callable, lists: list[str], changes: list[list[float]], first: Any, alt: str, pick: Any, reach: float):
    """Return the live box; `changes` holds the numbers of all lists."""
    import ipywidgets

    places = [control(name, (0, side - 1, side // 2)) for name, side in zip(("row", "column"), pick.shape[:2], strict=True)]
    which = control("weights_of", lists)
    back = ipywidgets.Button(description="all to zero")
    look = dict(orientation="vertical", readout=False, layout={"width": "26px", "height": "120px", "margin": "0"})
    bounds = dict(min=-reach, max=reach, step=reach / 50, value=0.0)
    bank = [ipywidgets.FloatSlider(**bounds, **look, tooltip=f"added to term {k}") for k in range(len(changes[0]))]
    columns = [
        ipywidgets.VBox([slider, ipywidgets.Label(str(k))], layout={"align_items": "center"}) for k, slider in enumerate(bank)
    ]
    view, error, turning = figure_view(first, alt), ipywidgets.HTML(), [False]

    def redraw(asked: tuple[int, int, list[list[float]]], coarse: bool) -> None:
        try:
            set_figure(view, draw(*asked), alt)
            error.value = ""
        except Exception as problem:  # the learner's own function: whatever it raises must be seen, and the panel must go on
            error.value = f'<span role="alert" style="color:#b00020">{html.escape(failure_line(problem))}</span>'

    latest = Latest(redraw, coarse=False)

    def moved(_: Any = None) -> None:
        if not turning[0]:
            changes[which.index] = [slider.value for slider in bank]
            latest.submit((places[0].value, places[1].value, [list(values) for values in changes]))

    def turned(_: Any = None) -> None:
        turning[0] = True  # the sliders come to mean another list: nothing was changed
        for slider, value in zip(bank, changes[which.index], strict=True):
            slider.value = value
        turning[0] = False

    def zero(_: Any) -> None:
        changes[:] = [[0.0] * len(bank) for _ in lists]
        turned()
        moved()

    which.observe(turned, names="value")
    back.on_click(zero)
    for slider in (*places, *bank):
        slider.observe(moved, names="value")
    head, sliders = ipywidgets.HBox([which, back]), ipywidgets.HBox(columns, layout={"flex_flow": "row wrap"})
    box = ipywidgets.VBox([_picker(pick, *places), *places, head, sliders, view, error])
    box.add_class("nsw-weights")
    return box
