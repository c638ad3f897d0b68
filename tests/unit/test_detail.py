"""Levels of detail: a partition of the splats at every cut, moments kept, and a picture close to the full one."""

from __future__ import annotations

import torch

from nsw.cameras import Cameras, intrinsics, look_at, orbit
from nsw.models.gaussians import Gaussians
from nsw.renderers import detail, render_view
from nsw.renderers.detail import DetailTree


def wall(n: int = 8_000) -> Gaussians:
    """A wavy wall of opaque splats in a smooth pattern of colours, and a few far away."""
    generator = torch.Generator().manual_seed(0)
    uv = 4 * torch.rand(n, 2, generator=generator) - 2
    means = torch.stack([uv[:, 0], 0.1 * torch.sin(3 * uv[:, 0]), uv[:, 1]], dim=1)
    means[: n // 50] *= torch.tensor([8.0, 300.0, 8.0])
    rgb = 0.5 + 0.4 * torch.sin(torch.stack([2 * uv[:, 0], 3 * uv[:, 1], uv.sum(dim=1)], dim=1))
    scales = torch.tensor([0.04, 0.02, 0.04]).expand(n, 3)
    turns = torch.nn.functional.normalize(torch.tensor([[1.0, 0.05, 0, 0]]), dim=1).expand(n, 4)
    return Gaussians.from_values(means, scales, turns, torch.full((n,), 0.8), rgb, sh_degree=1)


FRONT = Cameras(look_at(torch.tensor([[0.3, 7.0, 0.5]])), intrinsics(45.0, 96, 72), 96, 72)


def counted(tree: DetailTree) -> list[torch.Tensor]:
    """Return how many splats are inside each cell, level by level, the lowest one first."""
    inside, counts = torch.ones(len(tree.gaussians), dtype=torch.long), []
    for level in reversed(tree.levels):
        assert int(level.first[-1]) == len(inside)
        inside = torch.segment_reduce(inside.double(), "sum", lengths=level.first.diff()).long()
        counts.append(inside)
    return counts


def test_every_level_is_a_partition_with_the_same_weighted_mean(monkeypatch):
    monkeypatch.setattr(detail, "_TOP", 50)
    splats = wall()
    tree = DetailTree(splats)
    assert len(tree.levels) >= 3 and sorted(tree.order.tolist()) == list(range(len(splats)))
    assert all(int(inside.sum()) == len(splats) for inside in counted(tree))
    with torch.no_grad():
        weight = splats.activated_opacities * detail._area(splats.covariances)
        cells = torch.arange(len(tree.levels[-1].spread)).repeat_interleave(tree.levels[-1].first.diff())
        sums = torch.zeros(len(tree.levels[-1].spread)).index_add(0, cells, weight[tree.order])
        first = torch.zeros(len(sums), 3).index_add(0, cells, (weight[:, None] * splats.means)[tree.order])
    assert torch.allclose(tree.levels[-1].splats.means, first / sums[:, None], atol=2e-3, rtol=1e-3)


def test_a_cut_keeps_to_its_budget_and_leaves_nothing_out(monkeypatch):
    monkeypatch.setattr(detail, "_TOP", 50)
    splats = wall()
    far = Cameras(look_at(torch.tensor([[0.0, 5_000.0, 0.0]])), intrinsics(60.0, 96, 72), 96, 72)
    for budget in (200, 1_000, 4_000):
        assert len(DetailTree(splats, budget).cut(FRONT)) <= budget
    assert len(DetailTree(splats, 10_000).cut(far)) < 300  # from afar a few cells are enough
    whole = DetailTree(splats, 10**6, pixels=0.0).cut(FRONT)
    with torch.no_grad():
        full, all_opened = render_view(splats, FRONT).rgb, render_view(whole, FRONT).rgb
    assert torch.allclose(full, all_opened, atol=0.02)  # without a limit the leaves themselves, less those out of sight
    assert float((full - all_opened).abs().mean()) < 1e-5
    assert len(whole) <= len(splats)


def test_a_picture_of_a_quarter_of_the_splats_is_close(monkeypatch):
    monkeypatch.setattr(detail, "_TOP", 50)
    splats = wall()
    tree = DetailTree(splats, budget=2_000, pixels=0.5)
    with torch.no_grad():
        for pose in (FRONT, orbit(1, 6.0, 10.0, (0, 0, 0), 45.0, 96, 72)):
            full, quick = render_view(splats, pose), render_view(tree, pose)
            subset = torch.randperm(len(splats), generator=torch.Generator().manual_seed(1))[: len(tree.cut(pose))]
            part = Gaussians(splats.settings).fill(**{name: value[subset] for name, value in splats.params.items()})
            worse = render_view(part, pose)
            error, blunt = ((picture.rgb - full.rgb).square().mean() for picture in (quick, worse))
            assert float(error) < 2e-3 and float(error) < 0.5 * float(blunt)


def test_a_camera_that_turns_away_draws_next_to_nothing(monkeypatch):
    monkeypatch.setattr(detail, "_TOP", 50)
    away = Cameras(look_at(torch.tensor([[0.0, 7.0, 0.0]]), (0.0, 50.0, 0.0)), intrinsics(30.0, 96, 72), 96, 72)
    behind = wall()
    with torch.no_grad():
        behind.means[:, 1] = behind.means[:, 1].clamp(max=0.1)
    assert len(DetailTree(behind).cut(away)) < 50  # of the widest cells, in which the camera stands
    assert render_view(DetailTree(behind), away).rgb.min() > 0.99


def test_few_splats_are_their_own_tree():
    splats = wall(500)
    tree = DetailTree(splats)
    assert tree.levels == [] and len(tree.cut(FRONT)) == 500
    assert next(tree.parameters()) is splats.means
