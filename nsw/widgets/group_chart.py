"""One group of pixels, true against predicted, as S3IM sees it."""

from __future__ import annotations

from typing import Any


def group_figure(truth: Any, shift: float = 0.0, scale: float = 1.0, noise: float = 0.0):
    """Return a chart of one group, true against predicted red, and its terms of SSIM in the title.

    Args:
        truth, shift, scale, noise: see `s3im_inspect.changed_group`.
    """
    from nsw.methods.s3im_inspect import changed_group
    from nsw.widgets.charts import COLOURS, figure

    rgb, luminance, structure = changed_group(truth, shift, scale, noise)
    x, y = truth[:, 0].tolist(), rgb[:, 0].tolist()
    dots = dict(type="scatter", x=x, y=y, mode="markers", name="pixels", marker=dict(size=10, color=COLOURS[0]))
    line = dict(type="scatter", x=[0, 1], y=[0, 1], mode="lines", name="equal", line=dict(color="#888", dash="dash"))
    title = f"brightness {luminance:.2f} x structure {structure:.2f} = SSIM {luminance * structure:.2f}"
    chart = figure([dots, line], title=title, width=480, height=400, showlegend=False)
    chart.update_xaxes(title="true red", range=[0, 1])
    return chart.update_yaxes(title="predicted red", range=[-0.6, 1.6])
