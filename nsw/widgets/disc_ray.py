"""The discs that one ray meets, by depth and weight, beside the true surface."""

from __future__ import annotations


def disc_ray_figure(hits, true_depth: float):
    """Return a chart of a `gaussian_splatting_2d_inspect.RayHits`; its title says the ray's distortion.

    Args:
        hits: depths, weights and distortion.
        true_depth: camera z of the true surface; 0 where the ray meets none.
    """
    from nsw.widgets.charts import figure

    drawn = dict(type="scatter", mode="markers", x=hits.depth.tolist(), y=hits.weight.tolist(), name="discs")
    wall = dict(type="scatter", mode="lines", x=[true_depth] * 2, y=[0, 1], name="true surface")
    title = f"distortion {hits.distortion:.2g}, expected depth {hits.expected:.2f}"
    data = [drawn, wall] if true_depth > 0 else [drawn]
    return figure(data, title=title, xaxis_title="depth, scene units", yaxis_title="weight", margin=dict(t=80))
