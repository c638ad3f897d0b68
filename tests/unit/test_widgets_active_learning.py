"""Charts of active learning: where poses stand, what is marked, whose curve is whose."""

from __future__ import annotations

import torch

from nsw.widgets import active_learning as charts
from nsw.widgets.svg_still import svg


def test_the_sky_has_the_zenith_in_its_middle_and_rings_the_hardest():
    upward = torch.tensor([[0.0, 0.0, 3.0], [2.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, -1.0, 1.0]])
    errors = torch.tensor([0.1, 0.4, 0.2, torch.nan])
    figure = charts.pose_sky(upward, errors, 0.25, (0.1, 0.4))
    _, rings, dots = figure.data[:3]
    assert list(zip(dots.x, dots.y, strict=True))[0] == (0.0, 0.0) and abs(dots.x[1] - 1) < 1e-6
    assert list(rings.x) == [dots.x[1]] and len(dots.x) == 3 and dots.marker.color[0] != dots.marker.color[1]
    assert len(charts.pose_sky(upward, errors, 1.0, (0.1, 0.4)).data[1].x) == 3
    assert "<circle" in svg(figure, "poses seen from above")


def test_marked_pixels_are_blue_and_counted():
    figure = charts.marked(torch.full((8, 8, 3), 0.5), torch.tensor([[1, 2], [3, 4]]), 48, 5, 9)
    assert "After 48 steps: 5 of 9" in figure.layout.title.text and "2 of them" in figure.layout.title.text
    assert "empty" in charts.marked(torch.ones(8, 8, 3), torch.zeros(2, 0, dtype=torch.long), 0, 0, 0).layout.title.text


def test_a_curve_keeps_its_colour_whichever_others_are_drawn():
    curves = {name: ([0, 1, 2], [[0.0, 0.0], [1.0 + i, 2.0], [2.0 + i, 3.0]]) for i, name in enumerate(("a", "b", "c"))}
    both, one = charts.score_curves(curves, ["a", "c"], ["mean", "worst"]), charts.score_curves(curves, ["c"], ["mean", "worst"])
    assert len(both.data) == 4 and len(one.data) == 2 and one.data[0].line.color == both.data[2].line.color
    assert both.layout.yaxis.range == one.layout.yaxis.range and one.data[1].yaxis == "y2"


def test_levels_are_switched_one_by_one_and_together():
    curves = {name: ([0, 1], [[0.0], [1.0]]) for name in ("PVD", "pose", "ray", "point", "all three", "control")}
    names = lambda **ticked: [trace.name for trace in charts.switched(curves, ["mean"], **ticked).data]  # noqa: E731
    assert names(pose=False, ray=True, point=True, control=False) == ["PVD", "ray", "point"]
    assert names(pose=True, ray=True, point=True, control=True) == list(curves)
    more = charts.switched(curves | {"ray": ([0, 1], [[0.0], [1.5]])}, ["mean"], over_plain=True, ray=True)
    assert list(more.data[1].y) == [0.0, 0.5] and "over PVD" in more.layout.yaxis.title.text
