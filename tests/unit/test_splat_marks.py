"""What is drawn with splats stands where it should."""

from __future__ import annotations

import pytest
import torch

from nsw.models.gaussians import Gaussians
from nsw.renderers import splat_marks


def test_threads_lie_along_the_way_of_a_jump():
    start, end = torch.tensor([[0.0, 0, 0], [1, 2, 3], [1.0, 0, 0]]), torch.tensor([[1.0, 1, 0], [1, 2, 4], [-1.0, 0, 0]])
    threads = splat_marks.threads(start, end, [0.9, 0.5, 0.0], 0.01)
    vector = end - start
    for covariance_, d, centre, mean in zip(threads.covariances.detach(), vector, (start + end) / 2, threads.means, strict=True):
        values_, axes = torch.linalg.eigh(covariance_)
        assert float((axes[:, -1] @ d).abs()) == pytest.approx(float(d.norm()), rel=1e-4)
        assert float(values_[-1].sqrt()) == pytest.approx(float(d.norm()) / 4, rel=1e-3) and torch.allclose(mean, centre)


def test_dots_are_balls_of_one_size_and_the_dead_are_not_drawn():
    splats = Gaussians.from_values(torch.randn(2, 3), [[0.1, 0.2, 0.3]] * 2, [[1.0, 0, 0, 0]] * 2, [0.9, 0.001], torch.rand(2, 3))
    dots = splat_marks.dots(splats, 0.05)
    assert torch.allclose(dots.activated_scales, torch.tensor(0.05)) and torch.equal(dots.means, splats.means)
    assert dots.activated_opacities[0] > 0.9 and dots.activated_opacities[1] < 0.005


def test_a_box_has_twelve_edges_along_the_axes():
    boxes = torch.tensor([[[0.0, 0, 0], [1, 2, 3]], [[-1.0, -1, -1], [1, 1, 1]]])
    start, end = splat_marks.edges(boxes)
    d = (end - start).abs()
    assert len(start) == 24 and ((d > 0).sum(dim=1) == 1).all()
    assert d[:12].sum(dim=0).tolist() == [4.0, 8.0, 12.0]
    ends = {tuple(p) for p in torch.cat([start[:12], end[:12]]).tolist()}
    assert ends == {(x, y, z) for x in (0.0, 1.0) for y in (0.0, 2.0) for z in (0.0, 3.0)}
    assert splat_marks.edges(torch.zeros(0, 2, 3))[0].shape == (0, 3)
