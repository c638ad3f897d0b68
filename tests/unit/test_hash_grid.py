"""The hash grid as a field: protocol, box, colour per ray, saving, the truncated exponential."""

from __future__ import annotations

import pytest
import torch

from nsw import models
from nsw.errors import InputError
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.truncated_exp import truncated_exp
from nsw.renderers.volume import render_rays

SMALL = HashGridSettings(
    box=(-1.0, -2.0, 0.0, 1.0, 1.0, 2.0), n_levels=4, n_features=2, log2_entries=9, n_min=4, n_max=32, width=16, n_cells=8, step=0.1
)


def _grid(**changes) -> HashGrid:
    torch.manual_seed(0)
    model = HashGrid(HashGridSettings(**{**SMALL.__dict__, **changes}))
    model.table.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def _inputs(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(n, 3, generator=generator) * torch.tensor([2.0, 3.0, 2.0]) + torch.tensor([-1.0, -2.0, 0.0])
    return points, torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)


def test_query_gives_density_and_colour_of_their_kinds():
    model, (points, directions) = _grid(), _inputs()
    density, rgb, _ = model.query(points, directions)
    assert density.shape == (40,) and rgb.shape == (40, 3) and float(density.detach().min()) > 0
    assert float(rgb.detach().min()) >= 0 and float(rgb.detach().max()) <= 1
    torch.testing.assert_close(model.density(points), density)


def test_an_untrained_field_is_thin_grey_and_the_same_everywhere():
    torch.manual_seed(0)
    model, (points, directions) = HashGrid(SMALL), _inputs()
    assert float(model.table.detach().abs().max()) <= 1e-4
    density, rgb, _ = model.query(points, directions)
    torch.testing.assert_close(density, torch.full((40,), torch.e**-1), atol=1e-3, rtol=0)
    assert float((rgb.detach() - 0.5).abs().max()) < 0.2


def test_nothing_outside_of_the_box():
    outside = torch.tensor([[1.01, 0.0, 1.0], [0.0, -2.1, 1.0], [0.0, 0.0, -0.01]])
    assert _grid().density(outside).tolist() == [0.0, 0.0, 0.0]


def test_colour_once_a_ray_is_colour_at_each_point():
    model, (points, directions) = _grid(), _inputs()
    rays = torch.arange(40) // 4
    _, geometry = model.geometry(points)
    torch.testing.assert_close(model.colour(geometry, directions[:10], rays), model.colour(geometry, directions[rays]))


def test_levels_reach_from_dense_to_hashed():
    model = _grid()
    assert model.levels.hashed == (False, True, True, True) and model.table.shape == (model.levels.n_rows, 2)


def test_saved_and_loaded_it_says_the_same_and_skips_the_same(tmp_path):
    model, (points, directions) = _grid(), _inputs()
    model.occupancy.binaries[0, :4] = False
    loaded = models.load(models.save(model, tmp_path / "hash"))
    assert isinstance(loaded, HashGrid) and loaded.settings == model.settings
    for ours, theirs in zip(model.query(points, directions), loaded.query(points, directions), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(loaded.occupancy.binaries, model.occupancy.binaries)


def test_the_general_renderer_takes_it():
    from nsw.cameras import camera_rays, orbit

    model = _grid()
    rays = camera_rays(orbit(1, radius=4.0, target=(0.0, -0.5, 1.0), width=8, height=8))
    out = render_rays(model, rays, **model.render_defaults)
    assert out.rgb.shape == (64, 3) and bool(torch.isfinite(out.rgb).all()) and float(out.alpha.max()) > 0.1


def test_gradients_reach_table_and_networks_in_place():
    model, (points, directions) = _grid(), _inputs()
    model.table.grad = torch.zeros_like(model.table)
    model.gradients_in_place = True
    before = model.table.grad.data_ptr()
    density, rgb, _ = model.query(points, directions)
    (density.sum() + rgb.sum()).backward()
    assert model.table.grad.data_ptr() == before and float(model.table.grad.abs().sum()) > 0
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_a_flat_box_is_refused():
    with pytest.raises(InputError, match="volume"):
        HashGrid(HashGridSettings(box=(0.0, 0.0, 0.0, 1.0, 0.0, 1.0)))


def test_truncated_exp_is_exp_with_a_bounded_slope():
    x = torch.tensor([-3.0, 0.0, 14.9, 30.0], dtype=torch.float64, requires_grad=True)
    y = truncated_exp(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x.exp())
    torch.testing.assert_close(slope, x.clamp(max=15).exp())
    small = torch.tensor([-2.0, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(truncated_exp, (small,))
