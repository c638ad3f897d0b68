"""Charts of distillations: two fields along one ray, and the four levels of the volume over the stages of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nsw.cameras import Cameras, pixel_ray
from nsw.methods.pvd_inspect import along_ray, fog
from nsw.methods.pvd_teacher import Plan, Teacher


def ray_chart(curves: Mapping[str, tuple[Tensor, Tensor]], clip: tuple[float, float]):
    """Return the curves of `along_ray` as a chart with the clip's interval."""
    from nsw.widgets.charts import COLOURS, DASHES, figure

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


def ray_and_fog(
    fields: Mapping[str, nn.Module], teacher: Teacher, cameras: Cameras, row: int, column: int, clip: tuple[float, float]
):
    """Return the chart of one ray between the lines of a clip; its title says what the floor alone absorbs of the ray's light."""
    chart, ray = ray_chart(along_ray(fields, teacher, cameras, row, column), clip), pixel_ray(cameras, row, column)
    lost = [float(fog(teacher, ray, clip[0], everywhere)[1]) for everywhere in (False, True)]
    title = f"the floor absorbs {lost[0]:.1%} in shared cells, {lost[1]:.1%} in the whole box"
    return chart.update_layout(title=title, margin_t=90)


def staged(terms: Mapping[str, tuple[Sequence[float], Sequence[float]]], plan: Plan, y: str):
    """Return the chart of {level: (steps, values)} over the three stages of a plan as shaded bands; values are logarithmic.

    Args:
        y: what the values are.
    """
    from nsw.widgets.stage_chart import staged as banded

    features = plan.stage1 * plan.n_steps
    points = features + plan.stage2 * plan.n_steps
    ends = {"1: features": features, "2: density and colour": points, "3: pictures too": plan.n_steps}
    return banded(terms, ends, x="step", y=y, log_y=True)
