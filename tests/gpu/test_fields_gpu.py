"""Every field answers the same on a GPU as on the CPU, and so do the gradients of its parameters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nsw.cameras import camera_rays, orbit
from nsw.kernels.harmonics import sh_basis
from nsw.kernels.occupancy import OccGridEstimator
from nsw.kernels.packed import counts_of
from nsw.kernels.packed_rays import packed_weights
from nsw.kernels.row_rmsprop import RowRMSProp
from nsw.methods import plenoxels
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.mlp import NerfMLP, NerfSettings
from nsw.models.plenoxel_grid import PlenoxelGrid, PlenoxelGridSettings
from nsw.models.wide_linear import WideLinear
from nsw.renderers.volume import march_cells

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here: fields cannot be asked on one")

FIELDS = {
    "mlp": lambda: NerfMLP(NerfSettings(depth=3, width=32, skip=2)),
    "dense": lambda: DenseGrid(DenseGridSettings(n_voxels=12**3, n_features=4, mlp_width=16)),
    "hash": lambda: HashGrid(HashGridSettings(n_levels=5, log2_entries=9, n_max=64, width=16)),
    "plenoxels": lambda: PlenoxelGrid(PlenoxelGridSettings(n_voxels=8**3)),
}


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)
def test_values_and_gradients_are_those_of_the_cpu(make):
    torch.manual_seed(0)
    field = make()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    points = 1.9 * torch.rand(3000, 3) - 0.95
    directions = torch.nn.functional.normalize(torch.randn(3000, 3), dim=-1)
    found = []
    for device in ("cpu", "cuda"):
        field.to(device).zero_grad()
        out = field.query(points.to(device), directions.to(device))
        (out.density.sqrt().mean() + out.rgb.square().mean()).backward()
        gradients = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in field.parameters() if p.grad is not None]
        found.append([x.detach().cpu().clone() for x in (out.density, out.rgb, *gradients)])
    assert len(found[0]) == len(found[1]) > 2
    for cpu, cuda in zip(*found, strict=True):
        assert float((cpu - cuda).norm()) <= 2e-3 * float(cpu.norm())


def test_a_step_of_plenoxels_moves_the_same_rows_on_both_devices():
    """No kernel marks rows on a GPU: the optimiser has to find them in the gradient, or nothing ever learns."""
    rays, moved = camera_rays(orbit(2, radius=3.0, width=12, height=12)), []
    for device in ("cpu", "cuda"):
        model = PlenoxelGrid(PlenoxelGridSettings(n_voxels=8**3, density_init=1.0)).to(device)
        optimizer, before = RowRMSProp(model.values, 0.1, 0.1), model.values.detach().clone()
        out = plenoxels.render(model, rays.to(device))
        (out.rgb.square().mean() + plenoxels.loss_tv(model, torch.Generator(device).manual_seed(0), share=1.0)).backward()
        optimizer.step(model.touched)
        moved.append((model.values.detach() - before).cpu())
        weight = plenoxels.visible_weight(model, rays.to(device)).cpu()
        assert float(weight.max()) > 1e-3 and not bool(model.values.grad.any())
    assert float(moved[0].abs().max()) > 0.05
    assert float(((moved[0] != 0).any(1) == (moved[1] != 0).any(1)).float().mean()) > 0.98  # but for rays at a cell's wall
    picture = plenoxels.render_view(model, orbit(1, radius=3.0, width=8, height=8).to("cuda"))
    assert picture.rgb.shape == (1, 8, 8, 3) and picture.rgb.is_cuda


def test_a_wide_layer_is_right_to_tf32_and_leaves_the_process_as_it_was():
    torch.manual_seed(0)
    layer, x, asked = WideLinear(96, 80), torch.randn(7, 50, 96), torch.randn(7, 50, 80)
    found = []
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cuda")):
        layer.to(device, dtype).zero_grad()
        rows = x.detach().to(device, dtype).requires_grad_()
        out = layer(rows)
        (out * asked.to(out)).sum().backward()
        found.append([g.detach().cpu().double() for g in (out, rows.grad, layer.weight.grad, layer.bias.grad)])
    assert torch.get_float32_matmul_precision() == "highest"
    for truth, tf32 in zip(*found, strict=True):
        assert float((truth - tf32).norm()) <= 1e-3 * float(truth.norm())


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_harmonics_from_products_are_the_formulas(degree):
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    assert (sh_basis(degree, directions.cuda()).cpu() - sh_basis(degree, directions)).abs().max() < 1e-5


def test_samples_and_their_weights_are_the_same_with_gradients():
    torch.manual_seed(0)
    cells, rays = OccGridEstimator([-1.0, -1, -1, 1, 1, 1], 8), camera_rays(orbit(2, radius=3.0, width=12, height=12))
    cells.binaries = torch.rand(1, 8, 8, 8) < 0.3
    field = SimpleNamespace(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    index, t, points = march_cells(field, rays, cells, 0.05)
    on_gpu = march_cells(SimpleNamespace(aabb=field.aabb.cuda()), rays.to("cuda"), cells.cuda(), 0.05)
    counts = [counts_of(x, len(rays)).cpu() for x in (index, on_gpu[0])]
    same = counts[0] == counts[1]
    assert same.float().mean() > 0.9  # a middle on a cell's face may fall either way
    assert (t[same[index]] - on_gpu[1].cpu()[same[on_gpu[0].cpu()]]).abs().median() < 1e-4
    assert march_cells(SimpleNamespace(aabb=field.aabb.cuda()), rays[:0].to("cuda"), cells, 0.05)[0].numel() == 0
    depth, found = 0.3 * torch.rand(len(t)), []
    for device in ("cpu", "cuda"):
        x = depth.to(device).requires_grad_()
        weights, left = packed_weights(x, index.to(device), len(rays))
        (weights.square().sum() + left.square().sum()).backward()
        found.append([y.detach().cpu() for y in (weights, left, x.grad)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
