"""The marches made for voxel grids draw what volume rendering draws from the same grid's answers."""

from __future__ import annotations

import pytest
import torch

from nsw.cameras import orbit
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.renderers import render_view, volume


def dense() -> DenseGrid:
    model, generator = DenseGrid(DenseGridSettings(n_voxels=16**3)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        solid = model.vertices().norm(dim=-1) < 0.7
        model.raw_density[..., 0] = torch.where(solid, 60.0, -12.0)
        for parameter in model.parameters():
            if parameter is not model.raw_density:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


def sparse() -> PlenoxelGrid:
    model, generator = PlenoxelGrid(PlenoxelGridSettings(n_voxels=16**3, sh_degree=1)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.values.add_(6 * torch.randn(model.values.shape, generator=generator))
    return model


@pytest.mark.parametrize("make", [dense, sparse])
@pytest.mark.parametrize("background", [1.0, 0.0])
def test_the_fast_march_agrees_with_volume_rendering(make, background):
    model, cameras = make(), orbit(2, 4.0, 30.0, width=24, height=16)
    fast = render_view(model, cameras, background=background)
    slow = volume.render_view(model, cameras, background=background)
    assert float(slow.alpha.max()) > 0.9 and float(slow.alpha.min()) < 0.1  # there is something, and not everywhere
    assert torch.allclose(fast.rgb, slow.rgb, atol=2e-3) and torch.allclose(fast.alpha, slow.alpha, atol=2e-3)
    seen = slow.alpha > 0.5
    assert torch.allclose(fast.depth[seen], slow.depth[seen], atol=5e-3)
    assert not torch.allclose(fast.rgb, render_view(make(), orbit(2, 4.0, 50.0, width=24, height=16)).rgb, atol=0.02)
