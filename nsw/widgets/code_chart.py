"""Numbers of splats in a plane, and what their codes say instead."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from nsw.models.residual_codebooks import assign, total
from nsw.widgets.charts import figure, some_of


def codes_figure(scales: Float[Tensor, "N 3"], codewords: Float[Tensor, "L K 3"], stages: int):
    """Return a chart of the first two scales of some splats, and of what the first `stages` of their codes say."""
    scales = some_of(scales)
    data = []
    for name, xyz in (("splats", scales), (f"after {stages}", total(assign(scales, codewords), codewords, stages))):
        x, y, _ = xyz.T.tolist()
        data.append(dict(type="scatter", mode="markers", name=name, x=x, y=y))
    return figure(data, xaxis_title="scale 1", yaxis_title="scale 2")
