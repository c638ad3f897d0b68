"""Meshes coloured by how far they are from the true surface, which stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALT = "meshes coloured by their error, beside the true surface in grey"


def error_meshes(meshes: Mapping[str, Any], truth: Any, points: Any, high: float, alt: str = ALT, unit: str = "units") -> None:
    """Show meshes side by side as 3D figures that turn, each vertex in the colour of its distance to the true surface.

    Args:
        meshes: name -> trimesh.Trimesh.
        truth: mesh of the true surface, drawn grey at the end.
        points: of the true surface [P, 3], in the same units.
        high: distance at the yellow end of the scale; dark is 0.
        alt: what the figure shows.
        unit: written at the colour bar.
    """
    import torch

    from nsw.metrics import distances_to
    from nsw.widgets.charts import show_figure
    from nsw.widgets.mesh_chart import mesh_figure

    off = {name: distances_to(torch.as_tensor(mesh.vertices), points) for name, mesh in meshes.items()}
    chart = mesh_figure({**meshes, "truth": truth}, colour=off, unit=unit, high=high)
    show_figure(chart, alt, f"Dark: on the true surface. Yellow: {high:.3g} units off, or more.")
