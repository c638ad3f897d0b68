"""The median depth of 3D Gaussians against all splats at all pixels, and on two splats where it is known."""

from __future__ import annotations

import pytest
import torch

from nsw.cameras import orbit
from nsw.kernels.rasterize_reference import splat_alphas
from nsw.models.gaussians import Gaussians
from nsw.renderers.splat_median import median_depth
from nsw.renderers.splats import render_view


def drawn(gaussians: Gaussians, cameras) -> torch.Tensor:
    return median_depth(render_view(gaussians, cameras).extras["meta"], cameras.width, cameras.height)


@torch.no_grad()
def brute_force(gaussians: Gaussians, cameras) -> torch.Tensor:
    meta = render_view(gaussians, cameras).extras["meta"]
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in (cameras.height, cameras.width)), indexing="ij")
    pixels, found = torch.stack([columns, rows], -1).view(-1, 2), []
    for view in range(len(cameras)):
        near = meta["depths"][view].argsort(stable=True)
        near = near[(meta["radii"][view][near] > 0).all(-1)]
        depth = torch.zeros(len(pixels))
        alphas = splat_alphas(pixels, *(meta[name][view][near] for name in ("means2d", "conics", "opacities")))
        left = torch.ones(len(pixels))
        for splat, alpha in zip(near, alphas.T, strict=True):
            depth = torch.where((alpha > 0) & (left > 0.5), meta["depths"][view][splat], depth)
            left = left * (1 - alpha)
        found.append(depth.view(cameras.height, cameras.width))
    return torch.stack(found)


def test_median_depth_is_that_of_all_splats_at_all_pixels():
    random = torch.Generator().manual_seed(0)
    xyz = torch.rand(300, 3, generator=random) - 0.5
    gaussians = Gaussians.from_points(xyz, torch.rand(300, 3, generator=random), sh_degree=0, opacity=0.3)
    cameras = orbit(2, 3.0, width=40, height=24)
    expected = brute_force(gaussians, cameras)
    assert (expected > 0).any() and (expected == 0).any()
    assert torch.allclose(drawn(gaussians, cameras), expected)


@pytest.mark.parametrize("opacity, which", [(0.4, 1), (0.6, 0)])
def test_a_splat_in_front_counts_when_it_takes_half_of_the_light(opacity, which):
    camera = orbit(1, 3.0, width=9, height=9)
    ray = camera.origins[0] / camera.origins[0].norm()
    gaussians = Gaussians.from_points(torch.stack([ray * 0.5, -ray * 0.5]), torch.full((2, 3), 0.5), sh_degree=0, opacity=opacity)
    distances = (camera.origins[0] - gaussians.means.detach()).norm(dim=-1)
    assert float(drawn(gaussians, camera)[0, 4, 4]) == pytest.approx(distances[which].item(), abs=1e-4)


def test_without_splats_there_is_no_depth():
    gaussians = Gaussians.from_points(torch.full((1, 3), 99.0), torch.ones(1, 3), sh_degree=0)
    assert float(drawn(gaussians, orbit(1, 3.0, width=8, height=8)).abs().max()) == 0.0
