"""Profiles of splats that share a place: copies, and copies whose opacity and size were shared out."""

from __future__ import annotations


def stack_figure(opacity: float, splats: int):
    """Return a chart of opacity along a line through a stack of splats; the legend says peak and area of each profile.

    Args:
        opacity: of the one splat whose place they take, in (0, 1).
        splats: how many there are now.
    """
    import torch

    from nsw.methods.mcmc_inspect import stack_profiles
    from nsw.widgets.charts import DASHES, figure

    x, curves = stack_profiles(opacity, splats)
    data = [
        dict(
            type="scatter",
            x=x.tolist(),
            y=y.tolist(),
            name=f"{name}: peak {y.max():.2f}, area {torch.trapezoid(y, x):.2f}",
            line=dict(dash=DASHES[i], width=2.5),
        )
        for i, (name, y) in enumerate(curves.items())
    ]
    return figure(data, xaxis_title="distance in own sizes", yaxis_title="opacity", margin=dict(t=70))
