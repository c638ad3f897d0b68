"""Where the cameras of a scene stand, as a 3D chart."""

from __future__ import annotations

from typing import Any

import torch

from nsw.widgets.charts import COLOURS, figure


def camera_figure(scene: Any, most: int = 80):
    """Return a 3D plotly figure of a scene: cameras with their viewing directions, its box, and the world axes.

    Args:
        scene: a `Scene`.
        most: at most so many cameras of each split, evenly picked.
    """
    import plotly.graph_objects as go

    low, high = scene.aabb.cpu()
    size = float((high - low).norm())
    data = [_lines(_box_edges(low, high), "bounding box", "#777777", 3)]
    for i, (name, frames) in enumerate(scene.splits.items()):
        if not len(frames):
            continue
        picked = frames[torch.linspace(0, len(frames) - 1, min(most, len(frames))).round().long()]
        cameras = scene.views(picked)
        eyes = cameras.origins.cpu()
        ahead = eyes + 0.15 * size * cameras.world_from_cam[:, :3, 2].cpu()
        colour = COLOURS[i % len(COLOURS)]
        data.append(_lines([(a, b) for a, b in zip(eyes, ahead, strict=True)], f"{name} looks along", colour, 3, legend=False))
        x, y, z = eyes.T.tolist()
        symbol = ("circle", "diamond", "square", "x")[i % 4]
        data.append(
            go.Scatter3d(x=x, y=y, z=z, mode="markers", name=f"{name} cameras", marker=dict(size=4, color=colour, symbol=symbol))
        )
    for axis, name in zip(torch.eye(3), "xyz", strict=True):
        x, y, z = (0.4 * size * axis).tolist()
        line = dict(color="#222222", width=6)
        label = dict(text=["", name], mode="lines+text", textposition="top center", showlegend=False, hoverinfo="skip")
        data.append(go.Scatter3d(x=[0, x], y=[0, y], z=[0, z], name=f"world {name}", line=line, **label))
    titles = {f"{name}axis": dict(title=name) for name in "xyz"}
    scene_layout = dict(aspectmode="data", camera=dict(eye=dict(x=0.6, y=-1.6, z=0.9)), **titles)
    return figure(data, height=480, scene=scene_layout, margin=dict(l=10, r=10, t=40, b=10), showlegend=True)


def _lines(segments: list, name: str, colour: str, width: int, legend: bool = True):
    """Return segments as one trace; a gap between them is a None."""
    import plotly.graph_objects as go

    xs, ys, zs = ([v for a, b in segments for v in (float(a[k]), float(b[k]), None)] for k in range(3))
    line = dict(color=colour, width=width)
    return go.Scatter3d(x=xs, y=ys, z=zs, mode="lines", name=name, line=line, showlegend=legend, hoverinfo="skip")


def _box_edges(low: torch.Tensor, high: torch.Tensor) -> list:
    corners = torch.cartesian_prod(*(torch.stack([low[k], high[k]]) for k in range(3)))
    pairs = [(a, b) for a in range(8) for b in range(a) if bin(a ^ b).count("1") == 1]
    return [(corners[a], corners[b]) for a, b in pairs]
