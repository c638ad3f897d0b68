"""The vertices that share one entry of a hash table, in space."""

from __future__ import annotations

from typing import Any


def microscope(model: Any, pull: Any, rank: int = 0, bits: int | None = None, n_context: int = 1500):
    """Return a 3D chart of all vertices that share one entry, coloured and sized by how strongly each pulls at it.

    Args:
        model: a `HashGrid`.
        pull: of `instant_ngp_inspect.pull_on`, at the level to look at.
        rank: 0 takes the entry with the largest total gradient that several vertices pull at, 1 the next, and so on.
        bits: hash the same vertices into a table of 2^bits entries a level; the model's own size by default.
        n_context: vertices of other entries shown in grey, those that are pulled most: the scene's surface.
    """
    import torch

    from nsw.kernels.hash_encoding import hash_levels
    from nsw.methods.instant_ngp_inspect import vertex_positions
    from nsw.methods.instant_ngp_pull import sharing
    from nsw.widgets.charts import figure

    s, level = model.settings, pull.level
    bits = s.log2_entries if bits is None else bits
    levels = hash_levels(s.n_levels, s.n_min, s.n_max, bits)
    pull = pull.hashed_into(levels)
    row = pull.shared_row(rank)
    mine, own = sharing(levels, level, row), pull.rows == row
    place = lambda v: v @ torch.tensor([levels.n_vertices[level] ** k for k in (2, 1, 0)])  # noqa: E731
    share = torch.zeros(len(mine))
    share[torch.searchsorted(place(mine), place(pull.vertices[own]))] = pull.mass[own] / pull.mass[own].sum()
    shown = share.argsort(descending=True)[:n_context].sort().values  # of a fine level's billions, many thousands share an entry
    n_mine, mine, share = len(mine), mine[shown], share[shown]
    x, y, z = vertex_positions(model, level, mine).T.tolist()
    a, b, c = vertex_positions(model, level, pull.vertices[pull.mass.argsort(descending=True)[:n_context]]).T.tolist()
    text = [f"{float(s):.0%} of the gradient" for s in share]
    grey = dict(type="scatter3d", x=a, y=b, z=c, mode="markers", name="the surface", marker=dict(size=2, color="#bbbbbb"))
    marker = dict(size=(5 + 12 * share).tolist(), color=share.tolist(), colorscale="Cividis", cmin=0, cmax=1, showscale=True)
    marker["colorbar"] = dict(title="share of the gradient")
    entry = dict(type="scatter3d", x=x, y=y, z=z, mode="markers", name=f"entry {row}", marker=marker, text=text)
    title = f"2^{bits} entries, {pull.colliding:.0%} of pulled vertices collide; strongest of these {n_mine}: {share.max():.0%}"
    return figure([grey, entry], title=title, height=460)
