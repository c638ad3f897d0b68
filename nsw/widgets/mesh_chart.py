"""Triangle meshes as a 3D figure that turns under the mouse, side by side, coloured by a number at each vertex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.widgets.charts import figure

LIGHTING = dict(ambient=0.45, diffuse=0.7, specular=0.05, roughness=0.9)


def mesh_figure(meshes: Mapping[str, Any], colour: Mapping[str, Any] | None = None, unit: str = "", high: float | None = None):
    """Return a 3D plotly figure of meshes side by side along x.

    Args:
        meshes: name -> trimesh.Trimesh.
        colour: name -> one number a vertex, drawn in cividis from 0; meshes without it are grey.
        unit: of those numbers, written at the colour bar.
        high: number at the scale's end; by default the 98th percentile of all.
    """
    import plotly.graph_objects as go

    if not meshes or any(len(mesh.faces) == 0 for mesh in meshes.values()):
        raise InputError("mesh_figure() got a mesh without faces: look at the depth maps it was made from.")
    colour = {name: np.asarray(values, dtype=np.float64) for name, values in (colour or {}).items()}
    top = high or (float(np.quantile(np.concatenate(list(colour.values())), 0.98)) if colour else 1.0)
    wide = 1.08 * max(float(np.ptp(mesh.vertices[:, 0])) for mesh in meshes.values())
    data, ground = [], min(float(mesh.vertices[:, 2].min()) for mesh in meshes.values())
    for i, (name, mesh) in enumerate(meshes.items()):
        centre = mesh.bounds.mean(0)
        x, y, z = np.round(mesh.vertices - [centre[0] - i * wide, centre[1], 0.0], 3).T.tolist()
        a, b, c = np.asarray(mesh.faces).T.tolist()
        how: dict[str, Any] = dict(color="#c9c9c9")
        if name in colour:
            bar = dict(title=dict(text=unit), thickness=14, len=0.7)
            how = dict(intensity=np.round(colour[name], 5).tolist(), colorscale="Cividis", cmin=0.0, cmax=top, colorbar=bar)
            how["showscale"] = name == next(iter(colour))
        data.append(go.Mesh3d(x=x, y=y, z=z, i=a, j=b, k=c, name=name, lighting=LIGHTING, flatshading=True, **how))
        label = dict(mode="text", text=[name], textposition="bottom center", showlegend=False, hoverinfo="skip")
        data.append(go.Scatter3d(x=[i * wide], y=[-0.6 * float(np.ptp(mesh.vertices[:, 1]))], z=[ground - 0.15], **label))
    hidden = {f"{axis}axis": dict(visible=False) for axis in "xyz"}
    view = dict(aspectmode="data", camera=dict(eye=dict(x=0.0, y=-1.4, z=0.75)), **hidden)
    return figure(data, width=760, height=380, scene=view, margin=dict(l=10, r=10, t=10, b=10), showlegend=False)
