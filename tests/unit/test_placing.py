"""Splats as a rigid body: what a camera that moves along sees does not change."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from nsw.cameras import Cameras, intrinsics, look_at
from nsw.errors import InputError
from nsw.models.gaussians import Gaussians
from nsw.models.placing import harmonics_rotation, placed, quaternion_of, quaternion_product
from nsw.models.sh import sh_basis
from nsw.renderers import render_view

GENERATOR = torch.Generator().manual_seed(2)
TURN = torch.tensor(Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix())


def some(degree: int = 3) -> Gaussians:
    splats = Gaussians.random(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]), 40, GENERATOR, sh_degree=degree)
    with torch.no_grad():
        for name in ("quats", "shN", "scales"):
            splats.params[name].add_(0.3 * torch.randn(splats.params[name].shape, generator=GENERATOR))
    return splats


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_turn_with_the_body(degree):
    directions = torch.nn.functional.normalize(torch.randn(20, 3, generator=GENERATOR, dtype=torch.float64), dim=-1)
    D = harmonics_rotation(TURN, degree)
    coefficients = torch.randn((degree + 1) ** 2, generator=GENERATOR, dtype=torch.float64)
    turned = sh_basis(degree, directions @ TURN.T) @ (D @ coefficients)
    assert torch.allclose(turned, sh_basis(degree, directions) @ coefficients, atol=1e-9)
    assert torch.allclose(D @ D.T, torch.eye(len(D), dtype=D.dtype), atol=1e-9)
    for band in range(degree + 1):
        rows = slice(band**2, (band + 1) ** 2)
        assert float(D[rows].abs().sum() - D[rows, rows].abs().sum()) == 0.0  # no band reaches into another


def test_a_quaternion_product_is_one_turn_after_the_other():
    other = torch.tensor(Rotation.from_rotvec([-0.2, 0.3, 1.4]).as_matrix())
    product = quaternion_product(quaternion_of(TURN), quaternion_of(other))
    expected = quaternion_of(TURN @ other)
    assert torch.allclose(product * product[0].sign(), expected * expected[0].sign(), atol=1e-12)


def test_a_camera_that_moves_along_sees_the_same_picture():
    splats, shift, scale = some(), torch.tensor([0.3, -2.0, 5.0]), 1.7
    cameras = Cameras(look_at(torch.tensor([[3.0, 1.0, 1.5]])), intrinsics(60.0, 40, 30), 40, 30)
    moved = cameras.cam_from_world.double()
    # x' = s R x + t, and camera coordinates grow by s: R_c' = R_c R^T, t_c' = s t_c - R_c' t
    rotation = moved[:, :3, :3] @ TURN.T
    place = scale * moved[:, :3, 3] - (rotation @ shift.double())
    pose = torch.eye(4, dtype=torch.float64)[None].clone()
    pose[:, :3, :3], pose[:, :3, 3] = rotation, place
    with torch.no_grad():
        before = render_view(splats, cameras)
        after = render_view(placed(splats, TURN, shift, scale), Cameras(pose.float(), cameras.Ks, 40, 30))
    assert torch.allclose(before.rgb, after.rgb, atol=2e-4)
    assert torch.allclose(scale * before.depth, after.depth, rtol=1e-3, atol=1e-3)


def test_there_and_back_and_what_is_refused():
    splats = some()
    back = placed(placed(splats, TURN, torch.ones(3), 2.0), TURN.T, -TURN.T @ torch.ones(3).double() / 2, 0.5)
    assert torch.allclose(back.means, splats.means, atol=1e-5) and torch.allclose(back.shN, splats.shN, atol=1e-5)
    assert torch.allclose(back.scales, splats.scales, atol=1e-6)
    for name, value in placed(splats).params.items():
        assert torch.allclose(value, splats.params[name], atol=1e-7), name
    for wrong in (torch.diag(torch.tensor([1.0, 1, -1])), 2 * torch.eye(3)):
        with pytest.raises(InputError, match="proper rotation"):
            placed(splats, wrong)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="positive factor"):
            placed(splats, scale=scale)
