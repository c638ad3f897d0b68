"""The factored grid as a field: protocol, box, growing, shrinking, truncating, saving; VM, CP and voxels alike."""

from __future__ import annotations

import pytest
import torch

from nsw import models
from nsw.cameras import camera_rays, orbit
from nsw.errors import InputError
from nsw.kernels.vm_lookup import vm_lookup
from nsw.models.factors import CPSizes, VMSizes, VoxelSizes, resampled
from nsw.models.vm_grid import VMGrid, VMGridSettings
from nsw.renderers.volume import render_rays

BOX = (-1.0, -2.0, 0.0, 2.0, 1.0, 3.0)
KINDS = [VMSizes(3, 4), CPSizes(6, 8), VoxelSizes()]
every_kind = pytest.mark.parametrize("factors", KINDS, ids=["vm", "cp", "voxels"])
factored = pytest.mark.parametrize("factors", KINDS[:2], ids=["vm", "cp"])


def _grid(factors, box=BOX, n_voxels: int = 9**3, shift: float = 0.0) -> VMGrid:
    torch.manual_seed(0)
    model = VMGrid(VMGridSettings(box, n_voxels, factors, n_features=5, mlp_width=8, n_frequencies=(1, 2), shift=shift, n_cells=6))
    with torch.no_grad():
        for parameter in model.factors.parameters():
            parameter.normal_()
    return model


def _inputs(model: VMGrid, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    points = model.aabb[0] + torch.rand(n, 3, generator=generator) * (model.aabb[1] - model.aabb[0])
    return points, torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)


def _same(ours, theirs) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@every_kind
def test_query_gives_density_and_colour_of_their_kinds(factors):
    model = _grid(factors)
    points, directions = _inputs(model)
    density, rgb, _ = model.query(points, directions)
    assert density.shape == (60,) and rgb.shape == (60, 3) and float(density.detach().min()) > 0
    assert float(rgb.detach().min()) >= 0 and float(rgb.detach().max()) <= 1
    torch.testing.assert_close(model.density(points), density)
    torch.testing.assert_close(model.density(points, model.encode(points).detach()), density)


@every_kind
def test_nothing_outside_of_the_box(factors):
    outside = torch.tensor([[2.01, 0.0, 1.0], [0.0, -2.1, 1.0], [0.0, 0.0, -0.01]])
    assert _grid(factors).density(outside).tolist() == [0.0, 0.0, 0.0]


def test_vm_density_is_the_sum_of_planes_times_lines():
    model = _grid(VMSizes(2, 2), box=(0.0, 0.0, 0.0, 2.0, 1.0, 3.0), n_voxels=6**4)
    x, y, z = model.shape
    xy, xz, yz, along_z, along_y, along_x = (f.detach() for f in model.factors.density)
    dense = torch.einsum("xyr,zr->xyz", xy, along_z) + torch.einsum("xzr,yr->xyz", xz, along_y)
    dense = dense + torch.einsum("yzr,xr->xyz", yz, along_x)
    axes = [torch.linspace(0, float(model.aabb[1, a]), n) for a, n in enumerate((x, y, z))]
    vertices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    assert len({x, y, z}) == 3  # or a transposed plane would pass
    torch.testing.assert_close(model.encode(vertices).view(x, y, z), dense, atol=1e-4, rtol=1e-4)


@every_kind
def test_twice_as_many_cells_change_nothing(factors):
    model = _grid(factors)
    points, directions = _inputs(model)
    before = model.query(points, directions)
    assert model.shape == (9, 9, 9)
    model.resize(17**3)
    assert model.shape == (17, 17, 17)
    _same(model.query(points, directions), before)


def test_resampled_keeps_the_ends_and_the_old_vertices():
    values = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    for dimension in (0, 1):
        finer = resampled(values, dimension, 2 * values.shape[dimension] - 1)
        torch.testing.assert_close(finer.movedim(dimension, 0)[::2], values.movedim(dimension, 0))


@every_kind
def test_shrinking_changes_nothing_inside_of_the_new_box(factors):
    model = _grid(factors)
    wanted = torch.tensor([[-0.3, -1.9, 0.7], [1.1, 0.2, 2.2]])
    points = wanted[0] + torch.rand(80, 3, generator=torch.Generator().manual_seed(3)) * (wanted[1] - wanted[0])
    directions = torch.nn.functional.normalize(torch.randn(80, 3, generator=torch.Generator().manual_seed(4)), dim=-1)
    before, unit = model.query(points, directions), model.per_unit.clone()
    model.shrink(wanted)
    assert bool((model.aabb[0] <= wanted[0]).all()) and bool((model.aabb[1] >= wanted[1]).all())
    assert bool((model.aabb[0] > wanted[0] - 0.38).all()) and bool((model.aabb[1] < wanted[1] + 0.38).all())
    assert torch.equal(model.per_unit, unit) and model.shape == (6, 7, 6)
    assert torch.equal(model.occupancy.aabbs[0].view(2, 3), model.aabb)
    _same(model.query(points, directions), before)


@factored
def test_truncation_keeps_the_strongest_components(factors):
    model = _grid(factors)
    points, directions = _inputs(model)
    density, colour = model.energies()
    full = model.truncated(density.shape[1], colour.shape[1])
    _same(full.query(points, directions), model.query(points, directions))
    weak = (density == density.amin(1, keepdim=True)).nonzero()
    with torch.no_grad():  # a component without energy may go and nothing is missed
        for mode, r in weak.tolist():
            model.factors.density[mode][..., r] = 0.0
    small = model.truncated(density.shape[1] - 1, colour.shape[1])
    assert small.n_bytes < model.n_bytes
    _same(small.query(points, directions), model.query(points, directions))


def test_energy_is_the_mean_square_of_a_component_on_the_grid():
    model = _grid(VMSizes(3, 2))
    density, colour = model.energies()
    plane, line = model.factors.density[1].detach(), model.factors.density[4].detach()
    volume = torch.einsum("xzr,yr->xyzr", plane, line)
    torch.testing.assert_close(density[1], volume.square().mean((0, 1, 2)))
    plane, line, column = model.factors.colour[0].detach(), model.factors.colour[3].detach(), model.basis.weight.detach()[:, :2]
    features = torch.einsum("xyr,zr,fr->xyzrf", plane, line, column)
    torch.testing.assert_close(colour[0], features.square().sum(-1).mean((0, 1, 2)))


@every_kind
def test_saved_and_loaded_after_growing_and_shrinking_it_says_the_same(factors, tmp_path):
    model = _grid(factors)
    model.resize(13**3)
    model.shrink(torch.tensor([[-0.5, -1.5, 0.5], [1.0, 0.5, 2.5]]))
    if not isinstance(factors, VoxelSizes):
        model = model.truncated(2, 3)
    model.occupancy.binaries[0, :2] = False
    points, directions = _inputs(model)
    loaded = models.load(models.save(model, tmp_path / "vm"))
    assert isinstance(loaded, VMGrid) and loaded.settings == model.settings and loaded.shape == model.shape
    for ours, theirs in zip(model.query(points, directions), loaded.query(points, directions), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(loaded.occupancy.binaries, model.occupancy.binaries)


@every_kind
def test_gradients_reach_everything_in_place(factors):
    model = _grid(factors)
    points, directions = _inputs(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.gradients_in_place = True
    before = [f.grad.data_ptr() for f in model.factors.parameters()]
    density, rgb, _ = model.query(points, directions)
    (density.sum() + rgb.sum()).backward()
    assert [f.grad.data_ptr() for f in model.factors.parameters()] == before
    assert all(float(p.grad.abs().sum()) > 0 for p in model.parameters())


def test_the_general_renderer_takes_it():
    model = _grid(VMSizes(3, 4))
    rays = camera_rays(orbit(1, radius=6.0, target=(0.5, -0.5, 1.5), width=8, height=8))
    out = render_rays(model, rays, **model.render_defaults)
    assert out.rgb.shape == (64, 3) and bool(torch.isfinite(out.rgb).all()) and float(out.alpha.detach().max()) > 0.1


def test_factors_are_far_smaller_than_voxels():
    sizes = [VMGrid(VMGridSettings(BOX, 32**3, f)).n_bytes for f in (VoxelSizes(), VMSizes(8, 24), CPSizes(24, 72))]
    assert sizes[0] > 5 * sizes[1] > 10 * sizes[2]


def test_the_products_have_the_basis_columns_in_their_order():
    model = _grid(VMSizes(2, 3))
    points, _ = _inputs(model)
    planes, lines = list(model.factors.colour[:3]), list(model.factors.colour[3:])
    torch.testing.assert_close(model.features(points), vm_lookup(planes, lines, points, model.aabb) @ model.basis.weight.T)


def test_a_flat_box_is_refused():
    with pytest.raises(InputError, match="volume"):
        VMGrid(VMGridSettings(box=(0.0, 0.0, 0.0, 1.0, 0.0, 1.0)))


@factored
def test_a_larger_first_basis_scales_the_features_and_nothing_else(factors):
    models = []
    for start in (1.0, 3.0):
        torch.manual_seed(0)
        models.append(VMGrid(VMGridSettings(BOX, 9**3, factors, n_features=5, mlp_width=8, basis_start=start, n_cells=6)))
    plain, larger = models
    points, _ = _inputs(plain)
    torch.testing.assert_close(larger.features(points), 3 * plain.features(points))
    torch.testing.assert_close(larger.density(points), plain.density(points))
    assert all(torch.equal(a, b) for a, b in zip(plain.mlp.parameters(), larger.mlp.parameters(), strict=True))
