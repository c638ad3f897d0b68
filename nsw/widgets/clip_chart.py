"""Two fields along one ray, between the floor and the ceiling in which their densities are compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nsw.cameras import Cameras, pixel_ray
from nsw.methods.pvd_inspect import along_ray, fog
from nsw.methods.pvd_teacher import Teacher
from nsw.widgets.charts import COLOURS, DASHES, figure


def clip_figure(curves: Mapping[str, tuple[Tensor, Tensor]], clip: tuple[float, float]):
    """Return the curves of `pvd_inspect.along_ray` as a chart with the clip's interval."""
    reached = torch.cat([t for t, _ in curves.values()])
    ends = [float(reached.min()), float(reached.max())] if len(reached) else [0.0, 1.0]
    data = [
        dict(
            type="scatter", x=t.tolist(), y=s.tolist(), name=name, mode="lines+markers", line=dict(color=COLOURS[i], dash=DASHES[i])
        )
        for i, (name, (t, s)) in enumerate(curves.items())
    ]
    data += [
        dict(type="scatter", x=ends, y=[edge] * 2, name=name, mode="lines", line=dict(color="#777777", dash="dot"))
        for name, edge in zip(("clip, floor", "clip, ceiling"), clip, strict=True)
    ]
    axes = dict(xaxis=dict(title="distance along the ray"), yaxis=dict(title="log of a sample's optical depth"))
    return figure(data, showlegend=True, **axes)


def fog_figure(
    fields: Mapping[str, nn.Module], teacher: Teacher, cameras: Cameras, row: int, column: int, clip: tuple[float, float]
):
    """Return the chart of one ray between the lines of a clip; its title says what the floor alone absorbs of the ray's light."""
    chart, ray = clip_figure(along_ray(fields, teacher, cameras, row, column), clip), pixel_ray(cameras, row, column)
    lost = [float(fog(teacher, ray, clip[0], everywhere)[1]) for everywhere in (False, True)]
    title = f"the floor absorbs {lost[0]:.1%} in shared cells, {lost[1]:.1%} in the whole box"
    return chart.update_layout(title=title, margin_t=90)
