"""The conventions of `nsw.cameras`: OpenCV axes, +z up, pixel centres at one half, depth as camera z."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nsw.cameras import Cameras, camera_rays, check, intrinsics, look_at, orbit, pixel_rays, project
from nsw.errors import InputError


def ring(n: int = 6) -> Cameras:
    return orbit(n, radius=3.0, elevation_degrees=20.0, target=(0.2, -0.1, 0.5), fov_x_degrees=60.0, width=40, height=30)


def skewed() -> Cameras:
    cameras = ring(2)
    Ks = cameras.Ks.clone()
    Ks[:, 0, 1], Ks[:, 1, 1], Ks[:, 0, 2] = 1.5, 33.0, 17.0
    return Cameras(cameras.cam_from_world, Ks, cameras.width, cameras.height)


def test_axes_of_a_camera_that_looks_north():
    cameras = Cameras(look_at(torch.tensor([[0.0, -2.0, 0.0]])), intrinsics(90.0, 20, 10), 20, 10)
    pixels, z = project(cameras, torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1.0], [0.0, -4.0, 0]]))
    assert torch.allclose(z[0], torch.tensor([2.0, 2.0, 2.0, -2.0]))
    assert torch.allclose(pixels[0, :3], torch.tensor([[10.0, 5.0], [15.0, 5.0], [10.0, 0.0]]), atol=1e-5)  # right, then up


def test_rays_go_through_pixel_centres():
    cameras = Cameras(torch.eye(4)[None], torch.tensor([[[10.0, 0, 4], [0, 10, 3], [0, 0, 1]]]), 8, 6)
    rays = pixel_rays(cameras, torch.tensor([0]), torch.tensor([2]), torch.tensor([7]))
    expected = torch.tensor([[0.35, -0.05, 1.0]])
    assert torch.allclose(rays.directions, expected / expected.norm(), atol=1e-6)
    assert torch.allclose(rays.z_per_t, 1 / expected.norm(dim=-1))


@pytest.mark.parametrize("cameras", [ring(), skewed()], ids=["pinhole", "skewed"])
def test_points_along_rays_project_back_to_their_pixels(cameras):
    rays = camera_rays(cameras)
    assert len(rays) == len(cameras) * 30 * 40
    assert torch.allclose(rays.directions.norm(dim=-1), torch.ones(len(rays)), atol=1e-5)
    points = rays.origins + 2.7 * rays.directions
    i, j = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    centres = torch.stack([j, i], dim=-1).reshape(-1, 2)
    for c in range(len(cameras)):
        mine = slice(c * 1200, (c + 1) * 1200)
        pixels, z = project(cameras[c], points[mine])
        assert torch.allclose(pixels[0], centres, atol=2e-3)
        assert torch.allclose(z[0], 2.7 * rays.z_per_t[mine], atol=1e-4)  # depth is camera z, t a distance


def test_camera_rays_are_pixel_rays_in_the_order_camera_row_column():
    cameras = ring(3)
    rays = camera_rays(cameras)
    some = pixel_rays(cameras, torch.tensor([2]), torch.tensor([4]), torch.tensor([5]))
    index = 2 * 1200 + 4 * 40 + 5
    assert torch.equal(rays[index : index + 1].directions, some.directions)


def test_world_from_cam_is_the_inverse():
    cameras = ring()
    assert torch.allclose(cameras.world_from_cam @ cameras.cam_from_world, torch.eye(4).expand(6, 4, 4), atol=1e-5)
    assert torch.allclose(cameras.world_from_cam, torch.linalg.inv(cameras.cam_from_world), atol=1e-5)


@pytest.mark.parametrize(
    "index, count",
    [(2, 1), (-1, 1), (np.int64(3), 1), (torch.tensor(4), 1), ([0, 5], 2), (slice(1, 4), 3), (torch.tensor([1, 1]), 2)],
)
def test_indexing_keeps_the_batch(index, count):
    cameras = ring()
    picked = cameras[index]
    assert picked.cam_from_world.shape == (count, 4, 4) and picked.Ks.shape == (count, 3, 3) and picked.width == 40


def test_mask_picks_cameras():
    cameras = ring()
    assert torch.equal(cameras[cameras.origins[:, 0] > 0].origins, cameras.origins[cameras.origins[:, 0] > 0])


def test_orbit_is_level_anticlockwise_and_looks_at_the_target():
    cameras = ring(8)
    target = torch.tensor([[0.2, -0.1, 0.5]])
    pixels, z = project(cameras, target)
    assert torch.allclose(pixels[:, 0], torch.tensor([20.0, 15.0]).expand(8, 2), atol=1e-3) and torch.allclose(z, torch.tensor(3.0))
    offsets = cameras.origins - target
    assert torch.allclose(offsets[:, 2], torch.tensor(3 * math.sin(math.radians(20))))
    turn = offsets[:-1, 0] * offsets[1:, 1] - offsets[:-1, 1] * offsets[1:, 0]
    assert (turn > 0).all()
    assert (cameras.cam_from_world[:, 0, 2].abs() < 1e-6).all()  # x axes are horizontal
    assert (cameras.cam_from_world[:, 1, 2] < 0).all()  # y axes point down


def test_look_at_along_up_is_still_a_rotation():
    pose = look_at(torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, -5.0]]))
    assert check(Cameras(pose, intrinsics(50, 10, 10, 2), 10, 10))
    assert torch.allclose(pose[:, 2, 2], torch.tensor([-1.0, 1.0]))


def test_field_of_view():
    K = intrinsics(90.0, 200, 100)
    assert torch.allclose(K[0], torch.tensor([[100.0, 0, 100], [0, 100, 50], [0, 0, 1]]))


def test_resizing_keeps_the_view():
    cameras = skewed()
    points = torch.tensor([[0.2, -0.1, 0.5], [0.6, 0.3, 0.1]])
    before, _ = project(cameras, points)
    after, _ = project(cameras.resized(80, 15), points)
    assert torch.allclose(after, before * torch.tensor([2.0, 0.5]), atol=1e-3)


def test_gradients_reach_poses_and_intrinsics():
    cameras = ring(1)
    pose, K = cameras.cam_from_world.clone().requires_grad_(), cameras.Ks.clone().requires_grad_()
    rays = camera_rays(Cameras(pose, K, 4, 3))
    (rays.directions.sum() + rays.origins.square().sum()).backward()
    assert pose.grad.abs().sum() > 0 and K.grad.abs().sum() > 0 and torch.isfinite(pose.grad).all()


def spoilt(change) -> Cameras:
    cameras = ring(3)
    cameras = Cameras(cameras.cam_from_world.clone(), cameras.Ks.clone(), 40, 30)
    change(cameras)
    return cameras


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda c: c.cam_from_world[1, 0].fill_(math.nan), "not finite"),
        (lambda c: c.cam_from_world[1, 2, 3].fill_(math.inf), "not finite"),
        (lambda c: c.Ks[1, 0, 0].fill_(math.nan), "intrinsic"),
        (lambda c: c.cam_from_world[1, :3, :3].zero_(), "not a rotation"),
        (lambda c: c.cam_from_world[1, :3, :3].mul_(1.1), "not a rotation"),
        (lambda c: c.cam_from_world[1, 0].neg_(), "mirrored"),
        (lambda c: c.Ks[1, 0, 0].zero_(), "focal length"),
        (lambda c: c.Ks[1, 1, 1].neg_(), "focal length"),
    ],
)
def test_check_names_the_frame(change, what):
    with pytest.raises(InputError) as caught:
        check(spoilt(change), ["a.png", "b.png", "c.png"], "file.json")
    text = str(caught.value)
    assert "b.png" in text and what in text and text.startswith("file.json") and "\n" not in text and "1 of 3" in text


def test_check_returns_good_cameras():
    cameras = ring()
    assert check(cameras) is cameras


def test_cameras_are_gone_through_one_by_one_and_an_index_beyond_them_is_refused():
    """Going on until an index fails would end a process on a GPU, where reading beyond a tensor is no exception."""
    cameras = orbit(3, 2.0, width=4, height=4)
    assert [len(camera) for camera in cameras] == [1, 1, 1]
    assert torch.equal(torch.cat([camera.origins for camera in cameras]), cameras.origins)
    assert torch.equal(cameras[-1].origins, cameras.origins[2:])
    with pytest.raises(IndexError):
        cameras[3]
