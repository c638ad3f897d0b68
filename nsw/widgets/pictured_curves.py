"""A picture beside curves that say how good it is: for sliders whose every place is another picture with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nsw.widgets.charts import COLOURS, DASHES, figure, log_axis
from nsw.widgets.pictures import data_url, enlarged, png_bytes, shown_width, to_array

PICTURE_WIDTH, CURVE_WIDTH, HEIGHT = 300, 420, 340


def pictured(
    picture: Any,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    title: str,
    here: tuple[float, float] | None = None,
    log_x: bool = False,
):
    """Return a picture and, to its right, curves {name: (x values, y values)}, as one chart.

    Args:
        picture: anything `pictures.to_array` takes.
        title: of both; the place for the number that belongs to the picture.
        here: the point of the picture itself, drawn as a large dot.

    >>> pictured([[0.0, 1.0]], {"a": ([1, 2], [3, 4])}, "n", "PSNR (dB)", "two", here=(2, 4)).layout.title.text
    'two'
    """
    array = to_array(picture)
    array = enlarged(array, shown_width(array.shape[1], PICTURE_WIDTH, PICTURE_WIDTH))
    image = dict(type="image", source=data_url(png_bytes(array)), hoverinfo="skip", xaxis="x2", yaxis="y2")
    series = [
        dict(type="scatter", mode="lines+markers", x=list(xs), y=list(ys), name=name, line=dict(color=colour, dash=dash, width=2.5))
        for (name, (xs, ys)), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False)
    ]
    if here is not None:
        look = dict(size=14, color=COLOURS[1])
        series.append(dict(type="scatter", mode="markers", x=[here[0]], y=[here[1]], name="this picture", marker=look))
    width = PICTURE_WIDTH + CURVE_WIDTH
    share = PICTURE_WIDTH / (width - 40)
    across = log_axis([v for trace in series for v in trace["x"]]) if log_x else {}
    chart = figure([image, *series], title=title, width=width, height=HEIGHT, showlegend=True, margin=dict(l=20, r=20, t=80, b=60))
    chart.update_xaxes(title=x, domain=[share + 0.13, 1.0], **across)
    chart.update_yaxes(title=y)
    chart.update_layout(
        xaxis2=dict(domain=[0.0, share], anchor="y2", visible=False),
        yaxis2=dict(domain=[0.0, 1.0], anchor="x2", visible=False),
    )
    return chart
