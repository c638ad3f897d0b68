"""Sliders over a drawing function: latest-wins, coarse while moving, full at rest, and a still in every case."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from nsw.errors import InputError
from nsw.widgets import pictures
from nsw.widgets.frontend import Latest, emit, failure_line, live


def control(name: str, spec: Any):
    """Return the ipywidgets control of one range.

    Args:
        name: label.
        spec: (minimum, maximum, value[, step]) for a slider, whole numbers when all are; a list for a dropdown (its first
            entry is chosen); a bool for a checkbox; (text, [proposals]) for a box to type into, which answers on Enter.
    """
    import ipywidgets

    look = dict(description=name.replace("_", " "), style={"description_width": "initial"}, layout={"width": "min(100%, 480px)"})
    if isinstance(spec, bool):
        return ipywidgets.Checkbox(value=spec, indent=False, **look)
    if isinstance(spec, list) and spec:
        return ipywidgets.Dropdown(options=spec, value=spec[0], **look)
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], str) and isinstance(spec[1], list):
        return ipywidgets.Combobox(value=spec[0], options=spec[1], continuous_update=False, ensure_option=False, **look)
    if not (isinstance(spec, tuple) and len(spec) in (3, 4) and all(isinstance(v, numbers.Real) for v in spec)):
        expected = "(minimum, maximum, value[, step]), a list of choices, (text, [proposals]) or a bool"
        raise InputError(f"Slider {name}: expected {expected}, not {spec!r}.")
    low, high, value = spec[:3]
    if not low < high or not low <= value <= high:
        raise InputError(f"Slider {name}: expected minimum <= value <= maximum, got {spec!r}.")
    if all(isinstance(v, numbers.Integral) for v in spec):
        return ipywidgets.IntSlider(value=value, min=low, max=high, step=spec[3] if len(spec) == 4 else 1, **look)
    step = spec[3] if len(spec) == 4 else _step(low, high, value)
    return ipywidgets.FloatSlider(value=value, min=low, max=high, step=step, readout_format=f".{_decimals(step, low)}f", **look)


def _decimals(*numbers: float) -> int:
    """Return how many decimals, at most four, write all of the numbers: a readout of 0.05 and not of 0.0500.

    >>> _decimals(0.05, 0.3), _decimals(1.0, -60.0), _decimals(1 / 3)
    (2, 0, 4)
    """
    return next((n for n in range(4) if all(abs(round(v, n) - v) < 1e-9 for v in numbers)), 4)


def _step(low: float, high: float, value: float) -> float:
    """Return about a hundredth of the range, such that the first value is a whole number of steps from the minimum.

    The slider in the browser rounds to its steps; a first value between two of them would be changed at once.

    >>> _step(0.5, 4.0, 1.0), round(_step(0.0, 1.0, 1 / 3), 5)
    (0.05, 0.0101)
    """
    rough = (high - low) / 100
    power = 10.0 ** math.floor(math.log10(rough))
    nice = min((power * m for m in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    n = (value - low) / nice
    return nice if abs(n - round(n)) < 1e-9 else (value - low) / max(1, round(n))


def sliders(draw: Callable[..., Any], alt: str, caption: str | None = None, pick: Any = None, **ranges: Any) -> None:
    """Show `draw(**values)` under one control per range and redraw it as they move.

    While a slider moves only its newest value is drawn; values that came in between are dropped. When `draw` takes an
    argument `coarse`, it is called with coarse=True while values keep coming and once with coarse=False at rest.

    Args:
        draw: returns a picture (anything `pictures.to_array` takes), {title: picture} to see side by side, or a plotly figure.
        alt: what the picture shows.
        pick: a picture to click; the pixel sets the sliders `row` and `column`, whose ranges may then be left out. Where
            ranges name `to_row` and `to_column` too, dragging sets both corners of a box, and a click all four to a point.
        ranges: see `control`.
    """
    pictures.need_alt(alt)
    if pick is not None:
        pick = pictures.to_array(pick)
        sides = zip(("row", "column"), pick.shape[:2], strict=True)
        ranges = {name: (0, n - 1, n // 2) for name, n in sides} | ranges
    controls = {name: control(name, spec) for name, spec in ranges.items()}
    takes_coarse = "coarse" in inspect.signature(draw).parameters and "coarse" not in ranges
    first = side_by_side(draw(**{name: c.value for name, c in controls.items()}, **({"coarse": False} if takes_coarse else {})))
    panel = _Panel(draw, controls, first, alt, takes_coarse) if live() else None
    if panel and pick is not None:
        corners = [controls[name] for name in ("row", "column", "to_row", "to_column") if name in controls]
        panel.box.children = (_picker(pick, *corners), *panel.box.children)
    emit_still(first, alt, caption or _values_text(controls), panel.box if panel else None)


def side_by_side(drawn: Any) -> Any:
    """Return pictures {title: picture} as one with their titles, and anything else as it is."""
    return pictures.titled(drawn) if isinstance(drawn, Mapping) else drawn


def _values_text(controls: dict[str, Any]) -> str:
    """Return the settings that a still was drawn with."""
    return ", ".join(
        f"{name} = {c.value:.4g}" if isinstance(c.value, float) else f"{name} = {c.value}" for name, c in controls.items()
    )


def emit_still(drawn: Any, alt: str, caption: str | None, widget: Any) -> None:
    """Display a drawn picture or figure as the still of `widget`."""
    if hasattr(drawn, "to_plotly_json"):
        from nsw.widgets.charts import figure_bundle

        bundle = figure_bundle(drawn, alt)
        emit(bundle, widget, metadata={"image/svg+xml": {"alt": alt}})
    else:
        pictures.emit_picture(pictures.to_array(drawn), alt, caption, widget)


class _Panel:
    """The live box: controls, the picture or figure, and one red line for errors."""

    def __init__(self, draw: Callable[..., Any], controls: dict[str, Any], first: Any, alt: str, takes_coarse: bool):
        import ipywidgets

        from nsw.widgets.picture_widget import LivePicture

        self.draw, self.controls, self.takes_coarse, self.alt = draw, controls, takes_coarse, alt
        self.latest = Latest(self.redraw, coarse=takes_coarse)
        self.error = ipywidgets.HTML()
        self.is_figure = hasattr(first, "to_plotly_json")
        self.view = figure_view(first, alt) if self.is_figure else LivePicture(first, alt)
        self.box = ipywidgets.VBox([*controls.values(), self.view, self.error])
        self.box.add_class("nsw-sliders")
        for c in controls.values():
            c.observe(lambda change: self.latest.submit(self.values()), names="value")

    def values(self) -> dict[str, Any]:
        return {name: c.value for name, c in self.controls.items()}

    def redraw(self, values: dict[str, Any], coarse: bool) -> None:
        import html

        try:
            drawn = side_by_side(self.draw(**values, **({"coarse": coarse} if self.takes_coarse else {})))
            if self.is_figure:
                set_figure(self.view, drawn, self.alt)
            else:
                self.view.show_image(drawn)
            self.error.value = ""
        except Exception as error:  # the learner's own function: whatever it raises must be seen, and the panel must go on
            self.error.value = f'<span role="alert" style="color:#b00020">{html.escape(failure_line(error))}</span>'


def figure_view(figure: Any, alt: str):
    """Return a widget that shows a plotly figure and can show another one without flicker.

    plotly's own FigureWidget sends its five megabytes of script with every chart, which a busy machine does not load
    within the two seconds that the front end allows; a chart that follows a slider is drawn as SVG instead. Only 3D
    charts, which want turning, go through plotly's renderer.
    """
    import ipywidgets

    view = ipywidgets.Output() if _has_3d(figure) else ipywidgets.HTML()
    set_figure(view, figure, alt)
    return view


def set_figure(view: Any, figure: Any, alt: str) -> None:
    """Show another figure in a view made by `figure_view`."""
    from nsw.widgets.charts import figure_bundle
    from nsw.widgets.svg_still import svg

    if hasattr(view, "outputs"):
        view.outputs = ({"output_type": "display_data", "data": figure_bundle(figure, alt), "metadata": {}},)
    else:
        view.value = svg(figure, alt)


def _has_3d(figure: Any) -> bool:
    return any(trace.type.endswith("3d") or trace.type in ("surface", "cone") for trace in figure.data)


def _picker(image: Any, *sliders: Any):
    """Return a picture whose marked pixel or box and its two or four sliders follow each other."""
    from nsw.widgets.picture_widget import pixel_picker

    view = pixel_picker(image, "The picture to choose a pixel from.", *(slider.value for slider in sliders))

    clicking = [False]

    def clicked(change: Any) -> None:
        clicking[0] = True  # the first slider moves before the last one: what they say in between is no place
        for slider, value in zip(sliders, change["new"], strict=True):
            slider.value = value
        clicking[0] = False

    def slid(_: Any) -> None:
        if not clicking[0]:
            view.picked = [slider.value for slider in sliders]

    view.observe(clicked, names="picked")
    for slider in sliders:
        slider.observe(slid, names="value")
    return view
