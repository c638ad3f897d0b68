"""One component of a grid of factors in space: where its plane times its line is largest."""

from __future__ import annotations

from typing import Any


def product_figure(model: Any, mode: int, rank: int = 0, n_points: int = 2500):
    """Return a 3D chart of one component: plane times line where its product is largest, positive and negative.

    Args:
        model: a `VMGrid`.
        mode, rank: see `tensorf_inspect.component`.
    """
    import torch

    from nsw.methods.tensorf_inspect import component
    from nsw.models.dense_grid import lattice
    from nsw.widgets.charts import COLOURS, figure

    plane, line = component(model, mode, rank)
    axes = ("xyz", "xzy", "yzx")[mode]
    product = torch.einsum("ab,c->abc", plane, line).permute(*(axes.index(a) for a in "xyz"))
    strongest = product.abs().flatten().argsort(descending=True)[:n_points]
    points, values = lattice(model.aabb, model.shape).reshape(-1, 3)[strongest].cpu(), product.flatten()[strongest].cpu()
    data = []
    for name, chosen, colour in (("positive", values > 0, COLOURS[4]), ("negative", values < 0, COLOURS[0])):
        x, y, z = points[chosen].T.tolist()
        data.append(
            dict(type="scatter3d", x=x, y=y, z=z, mode="markers", name=name, marker=dict(size=2.5, color=colour, opacity=0.7))
        )
    return figure(data, height=460, scene=dict(aspectmode="data"))
