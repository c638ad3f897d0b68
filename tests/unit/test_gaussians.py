from __future__ import annotations

import numpy as np
import pytest
import torch

from nsw import models
from nsw.errors import InputError
from nsw.models.gaussians import NAMES, Gaussians, GaussiansSettings, neighbour_distance
from nsw.scenes.scene import Points

BOX = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 2.0, 3.0]])


def test_spacing_is_the_rms_distance_to_three_neighbours():
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    distance = torch.cdist(points.double(), points.double())
    nearest = distance.topk(4, largest=False).values[:, 1:]
    assert torch.allclose(neighbour_distance(points).double(), nearest.square().mean(1).sqrt(), rtol=1e-5)


def test_spacing_of_points_on_top_of_each_other_is_floored():
    assert torch.allclose(neighbour_distance(torch.zeros(5, 3)), torch.full((5,), 1e-7**0.5))


def test_from_points_starts_with_the_colours_spacing_and_opacity():
    points = Points(torch.rand(20, 3), torch.rand(20, 3))
    splats = Gaussians.from_points(points, sh_degree=2, opacity=0.3, scale=0.5)
    assert torch.allclose(splats.base_rgb, points.rgb, atol=1e-6)
    assert torch.allclose(splats.activated_opacities, torch.full((20,), 0.3))
    assert torch.allclose(splats.activated_scales, 0.5 * neighbour_distance(points.xyz)[:, None].expand(-1, 3), rtol=1e-5)
    assert splats.sh.shape == (20, 9, 3)
    assert splats.settings == GaussiansSettings(sh_degree=2)


def test_random_start_fills_the_box_and_repeats_for_a_seed():
    one, two = (Gaussians.random(BOX, 300, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(one.params[name], two.params[name]) for name in NAMES)
    assert bool(((one.means >= BOX[0]) & (one.means <= BOX[1])).all())
    assert torch.allclose(one.means.mean(0), BOX.mean(0), atol=0.25)


def test_covariance_has_the_squared_scales_as_eigenvalues():
    quats = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    scales = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) + 0.1
    splats = Gaussians.from_values(torch.zeros(6, 3), scales, quats, torch.full((6,), 0.5), torch.rand(6, 3))
    eigenvalues = torch.linalg.eigvalsh(splats.covariances)
    assert torch.allclose(eigenvalues, scales.square().sort(dim=1).values, atol=1e-5)


def test_isotropic_splats_stay_balls_and_share_one_gradient():
    splats = Gaussians.random(BOX, 5, sh_degree=0, isotropic=True)
    with torch.no_grad():
        splats.scales += torch.randn(5, 3)
    assert torch.equal(splats.activated_scales[:, 0], splats.activated_scales[:, 2])
    splats.activated_scales[:, 1].sum().backward()
    assert torch.allclose(splats.scales.grad[:, 0], splats.scales.grad[:, 2])
    assert bool((splats.scales.grad > 0).all())


def test_state_of_another_size_restores(tmp_path):
    grown, fresh = Gaussians.random(BOX, 31, sh_degree=1), Gaussians.random(BOX, 8, sh_degree=1)
    fresh.load_state_dict(grown.state_dict())
    assert len(fresh) == 31
    assert all(torch.equal(fresh.params[name], grown.params[name]) for name in NAMES)
    wrapped = torch.nn.ModuleDict({"splats": Gaussians(GaussiansSettings(sh_degree=1))})
    wrapped.load_state_dict({f"splats.{name}": value for name, value in grown.state_dict().items()})
    assert len(wrapped["splats"]) == 31


@pytest.mark.parametrize("degree", [0, 3])
def test_save_and_load_through_disk(tmp_path, degree):
    splats = Gaussians.random(BOX, 12, sh_degree=degree, isotropic=degree == 0)
    back = models.load(models.save(splats, tmp_path / "m"))
    assert back.settings == splats.settings
    assert all(np.array_equal(back.params[n].detach().numpy(), splats.params[n].detach().numpy()) for n in NAMES)


def test_state_of_another_degree_is_refused():
    with pytest.raises(RuntimeError, match="shN"):
        Gaussians(GaussiansSettings(sh_degree=2)).load_state_dict(Gaussians.random(BOX, 3, sh_degree=1).state_dict())


@pytest.mark.parametrize("points", [torch.zeros(0, 3), torch.zeros(4, 2), torch.full((3, 3), float("nan"))])
def test_points_that_cannot_start_splats_are_refused(points):
    with pytest.raises(InputError, match="finite points"):
        Gaussians.from_points(points)


def test_rows_that_do_not_agree_are_refused():
    raw = {name: value.detach() for name, value in Gaussians.random(BOX, 4, sh_degree=1).params.items()}
    with pytest.raises(InputError, match="one row per splat"):
        Gaussians(GaussiansSettings(sh_degree=1)).fill(**{**raw, "quats": raw["quats"][:2]})
    with pytest.raises(InputError, match="shN has shape"):
        Gaussians(GaussiansSettings(sh_degree=2)).fill(**raw)
    with pytest.raises(InputError, match="sh_degree is 5"):
        Gaussians(GaussiansSettings(sh_degree=5))
