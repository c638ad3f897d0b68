"""The compiled sums of a fusion against the same in torch calls."""

from __future__ import annotations

import pytest
import torch

from nsw.cameras import orbit
from nsw.kernels.tsdf_fusion import distance_sums
from nsw.models.meshes import grid_points
from nsw.renderers.tsdf import sums_reference


@pytest.mark.parametrize("reach", [0.05, 0.4])
def test_compiled_sums_are_those_of_torch(reach):
    """Maps with steps, holes and empty pixels; a point that a rounding puts into another pixel may differ."""
    generator = torch.Generator().manual_seed(0)
    cameras = orbit(6, 3.0, 20.0, width=24, height=18)
    depth = 2.7 + 0.6 * torch.rand(6, 18, 24, generator=generator)
    kind = torch.rand(6, 18, 24, generator=generator)
    depth[kind < 0.1], depth[kind > 0.9] = 0.0, torch.inf
    depth[3:, :, 10:] = 3.0 + 0.01 * torch.arange(14)  # smooth: the bilinear branch
    points = grid_points(torch.tensor([[-1.5, -1.5, -1.5], [1.5, 1.5, 4.0]]), 0.15)[0].reshape(-1, 3)  # some are behind a camera
    given = points, depth, depth > 0, cameras, reach * (1 + torch.rand(len(points), generator=generator))
    (total, count), (total_ref, count_ref) = (f(*given) for f in (distance_sums, sums_reference))
    same = (count == count_ref) & ((total - total_ref).abs() < 1e-3)
    assert count.max() > 3 and (count == 0).any() and float(same.float().mean()) > 0.999
    assert (total - total_ref)[same].abs().max() < 1e-3


def test_a_point_behind_or_beside_every_camera_hears_nothing():
    camera = orbit(1, 3.0, 0.0, width=8, height=8)
    points = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    total, count = distance_sums(
        points, torch.full((1, 8, 8), 3.1), torch.ones(1, 8, 8, dtype=torch.bool), camera, torch.full((3,), 0.2)
    )
    assert count.tolist() == [0, 0, 1] and total.tolist() == pytest.approx([0, 0, 0.5], abs=1e-5)
