"""Every layout is recognised and gives the cameras, splits, pictures and bounds that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scene_files as files
import torch
import trimesh
from PIL import Image

import nsw.scenes
from nsw.cameras import project

LEGO = Path(__file__).resolve().parents[3] / "shared" / "data" / "lego"


def same_cameras(scene, cameras, tolerance=1e-4):
    assert torch.allclose(scene.cameras.cam_from_world, cameras.cam_from_world, atol=tolerance)
    assert torch.allclose(scene.cameras.Ks, cameras.Ks, atol=1e-3)


def test_blender(tmp_path):
    cameras = files.write_blender(tmp_path)
    scene = nsw.scenes.load(tmp_path)
    same_cameras(scene, cameras)
    assert scene.has_alpha and scene.background == "white" and scene.notes == ()
    assert {split: len(index) for split, index in scene.splits.items()} == {"train": 8, "val": 0, "test": 3}
    assert scene.aabb.tolist() == [[-1.5] * 3, [1.5] * 3] and (scene.near, scene.far) == (2.0, 6.0)
    assert (scene.images.numpy() == np.stack(files.pictures(cameras))).all()
    assert len(scene.digest) == 64 and scene.digest == nsw.scenes.load(tmp_path).digest


def test_blender_without_test_file_holds_out_every_eighth_and_says_so(tmp_path):
    files.write_blender(tmp_path, n_train=17, n_test=0)
    scene = nsw.scenes.load(tmp_path)
    assert scene.splits["test"].tolist() == [0, 8, 16] and len(scene.splits["train"]) == 14
    assert any("every 8th" in note for note in scene.notes)


def test_blender_with_only_a_val_file_tests_on_it(tmp_path):
    files.write_blender(tmp_path)
    (tmp_path / "transforms_test.json").rename(tmp_path / "transforms_val.json")
    scene = nsw.scenes.load(tmp_path)
    assert len(scene.splits["test"]) == 3 and len(scene.splits["val"]) == 0 and "validation" in scene.notes[0]


def test_blender_cameras_at_another_distance_scale_the_box(tmp_path):
    far = files.views(11)
    far = type(far)(far.cam_from_world.clone(), far.Ks, far.width, far.height)
    far.cam_from_world[:, :3, 3] *= 10
    files.write_blender(tmp_path, cameras=far)
    scene = nsw.scenes.load(tmp_path)
    assert torch.allclose(scene.aabb[1], torch.tensor(15.0), atol=1e-2)
    assert scene.near == pytest.approx(20, abs=0.1) and scene.far >= 60 - 0.1


def test_size_averages_pictures_and_scales_intrinsics(tmp_path):
    cameras = files.write_blender(tmp_path)
    scene, full = nsw.scenes.load(tmp_path, size=16), nsw.scenes.load(tmp_path)
    assert scene.images.shape == (11, 12, 16, 4)
    same_cameras(scene, cameras.resized(16, 12))
    assert (scene.images == full.resized(16).images).all() and scene.digest != full.digest


def test_transforms_nerfstudio(tmp_path):
    cameras = files.write_transforms(tmp_path)
    scene = nsw.scenes.load(tmp_path)
    same_cameras(scene, cameras)
    assert not scene.has_alpha and scene.background == "plain"  # the ball is written before black
    assert scene.splits["test"].tolist() == [0, 8]
    assert nsw.scenes.load(tmp_path / "transforms.json").digest == scene.digest


def test_transforms_per_frame_intrinsics_and_angle_only(tmp_path):
    cameras = files.write_transforms(tmp_path)

    def change(data):
        for key in ("fl_x", "fl_y", "cx", "cy"):
            del data[key]
        data["camera_angle_x"] = 2 * np.arctan(16 / 20.0)
        data["frames"][3].update(fl_x=25.0, fl_y=26.0, cx=15.0, cy=11.0)

    files.edit_json(tmp_path / "transforms.json", change)
    Ks = nsw.scenes.load(tmp_path).cameras.Ks
    assert torch.allclose(Ks[0], torch.tensor([[20.0, 0, 16], [0, 20, 12], [0, 0, 1]]))
    assert torch.allclose(Ks[3], torch.tensor([[25.0, 0, 15], [0, 26, 11], [0, 0, 1]]))
    assert len(cameras) == len(Ks)


def test_transforms_intrinsics_for_larger_pictures_than_stored(tmp_path):
    cameras = files.write_transforms(tmp_path)
    big = cameras.resized(64, 48)
    K = big.Ks[0].tolist()
    files.edit_json(
        tmp_path / "transforms.json", lambda d: d.update(fl_x=K[0][0], fl_y=K[1][1], cx=K[0][2], cy=K[1][2], w=64, h=48)
    )
    same_cameras(nsw.scenes.load(tmp_path), cameras)


@pytest.mark.parametrize(
    "keys, box",
    [
        ({"aabb_scale": 4}, [[-2 / 0.33] * 3, [2 / 0.33] * 3]),
        ({"aabb_scale": 1, "scale": 0.5, "offset": [0.5, 0.25, 0.0]}, [[-1.0, -0.5, 0.0], [1.0, 1.5, 2.0]]),
        ({"aabb": [[-1, -2, -3], [1, 2, 3]]}, [[-1, -2, -3], [1, 2, 3]]),
    ],
)
def test_instant_ngp_boxes(tmp_path, keys, box):
    files.write_transforms(tmp_path, **keys)
    scene = nsw.scenes.load(tmp_path)
    assert torch.allclose(scene.aabb, torch.tensor(box, dtype=torch.float32), atol=1e-4)
    corners = torch.cartesian_prod(*scene.aabb.T)
    distances = torch.cdist(scene.cameras.origins, corners)
    assert 0 < scene.near < scene.far and scene.far >= distances.max() - 1e-3


def test_instant_ngp_leaves_out_missing_pictures_of_frames_with_sharpness(tmp_path):
    files.write_transforms(tmp_path)
    files.edit_json(tmp_path / "transforms.json", lambda d: [frame.update(sharpness=50.0) for frame in d["frames"]])
    (tmp_path / "images" / "004.png").unlink()
    scene = nsw.scenes.load(tmp_path)
    assert len(scene) == 8 and "1 of 9" in scene.notes[0]


def test_transforms_splits_by_frame_and_by_names(tmp_path):
    files.write_transforms(tmp_path)
    files.edit_json(
        tmp_path / "transforms.json", lambda d: [f.update(split="test" if i == 5 else "train") for i, f in enumerate(d["frames"])]
    )
    assert nsw.scenes.load(tmp_path).splits["test"].tolist() == [5]

    def by_names(data):
        for frame in data["frames"]:
            del frame["split"]
        paths = [frame["file_path"] for frame in data["frames"]]
        data.update(train_filenames=paths[:4], val_filenames=paths[4:6], test_filenames=paths[6:8])

    files.edit_json(tmp_path / "transforms.json", by_names)
    scene = nsw.scenes.load(tmp_path)
    assert {split: index.tolist() for split, index in scene.splits.items()} == {
        "train": [0, 1, 2, 3],
        "val": [4, 5],
        "test": [6, 7],
    }


def test_transforms_points_masks_and_upright_world(tmp_path):
    cameras = files.write_transforms(
        tmp_path, ply_file_path="points.ply", applied_transform=[[1, 0, 0, 5], [0, 1, 0, 5], [0, 0, 1, 5]]
    )
    xyz = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    turn = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # the world of a y-up program

    def change(data):
        for frame in data["frames"]:
            frame["transform_matrix"] = (turn @ np.array(frame["transform_matrix"])).tolist()
        data["frames"][0]["mask_path"] = "mask.png"

    files.edit_json(tmp_path / "transforms.json", change)
    trimesh.PointCloud(xyz @ turn[:3, :3].T, colors=np.full((50, 4), 255, np.uint8)).export(tmp_path / "points.ply")
    mask = np.full((files.HEIGHT, files.WIDTH), 255, np.uint8)
    mask[:5] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    scene = nsw.scenes.load(tmp_path)
    assert any("+z" in note for note in scene.notes)
    up = -scene.cameras.cam_from_world[:, 1, :3].mean(0)
    assert torch.nn.functional.normalize(up, dim=0)[2] > 0.999
    before, _ = project(cameras, torch.from_numpy(xyz).float())
    after, _ = project(scene.cameras, scene.points.xyz)
    assert torch.allclose(before, after, atol=0.01)
    assert not scene.masks[0, :5].any() and scene.masks[0, 5:].all() and scene.masks[1:].all()


@pytest.mark.parametrize("ending", ["bin", "txt"])
@pytest.mark.parametrize("where", ["sparse/0", "colmap/sparse/0", "."])
def test_colmap(tmp_path, ending, where):
    pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
    cameras, points = files.write_colmap(tmp_path, ending=ending, where=where)
    scene = nsw.scenes.load(tmp_path)
    assert len(scene) == 9 and len(scene.points) == 60 and scene.splits["test"].tolist() == [0, 8]
    before, _ = project(cameras, torch.from_numpy(points).float())
    after, _ = project(scene.cameras, scene.points.xyz)
    order = torch.cdist(before[0], after[0]).argmin(dim=1)  # COLMAP gives points in an order of its own
    assert torch.allclose(before, after[:, order], atol=0.02)
    up = -scene.cameras.cam_from_world[:, 1, :3].mean(0)
    assert torch.nn.functional.normalize(up, dim=0)[2] > 0.999
    assert scene.cameras.origins.norm(dim=-1).mean() == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(scene.points.rgb[0] * 255, torch.tensor([200.0, 100.0, 50.0]), atol=0.5)
    assert (scene.points.xyz > scene.aabb[0]).float().mean() > 0.9 and 0.3 < scene.near < scene.far < 3


def test_colmap_reads_the_smallest_copy_that_is_wide_enough(tmp_path):
    pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
    files.write_colmap(tmp_path)
    small = files.views().resized(16, 12)
    (tmp_path / "images_2").mkdir()
    for i in range(len(small)):  # the downsized copies have other names, as in the LLFF captures, and are plain grey here
        Image.new("RGB", (16, 12), (90, 90, 90)).save(tmp_path / "images_2" / f"image{i:03d}.jpg")
    assert (nsw.scenes.load(tmp_path, size=8).images == 90).all()
    assert (nsw.scenes.load(tmp_path, size=20).images != 90).any()
    assert torch.allclose(nsw.scenes.load(tmp_path, size=8).cameras.Ks, files.views().resized(8, 6).Ks, atol=1e-3)


def test_colmap_pictures_of_two_sizes_are_padded_and_masked(tmp_path):
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
    files.write_colmap(tmp_path)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    model.add_camera_with_trivial_rig(pycolmap.Camera(model="PINHOLE", width=24, height=32, params=[30, 30, 12, 16], camera_id=2))
    pose = files.views().cam_from_world[0].double().numpy()[:3]
    image = pycolmap.Image(name="portrait.png", camera_id=2, image_id=50)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    model.write_binary(str(tmp_path / "sparse" / "0"))
    Image.new("RGB", (24, 32), (10, 20, 30)).save(tmp_path / "images" / "portrait.png")
    scene = nsw.scenes.load(tmp_path)
    assert scene.images.shape == (10, 32, 32, 3)
    assert scene.masks[0, :, :24].all() and not scene.masks[0, :, 24:].any()  # "portrait" sorts first
    assert scene.masks[1, :24].all() and not scene.masks[1, 24:].any()
    assert torch.allclose(scene.cameras.Ks[0], torch.tensor([[30.0, 0, 12], [0, 30, 16], [0, 0, 1]]))


@pytest.mark.parametrize("folder_name, shrink", [("images", 1), ("images_4", 2)])
def test_llff(tmp_path, folder_name, shrink):
    cameras = files.write_llff(tmp_path, folder_name=folder_name, shrink=shrink)
    scene = nsw.scenes.load(tmp_path)
    assert scene.images.shape[1:3] == (24 // shrink, 32 // shrink)
    assert torch.allclose(scene.cameras.Ks, cameras.resized(32 // shrink, 24 // shrink).Ks, atol=1e-3)
    scale = (4 / 3) / 2.5
    assert scene.near == pytest.approx(0.9 * 4 / 3) and scene.far == pytest.approx(7.0 * scale)
    assert torch.allclose(scene.cameras.origins.mean(0), torch.zeros(3), atol=1e-4)
    shape = (cameras.origins - cameras.origins.mean(0)) * scale
    assert torch.allclose(scene.cameras.origins, shape, atol=1e-3)  # they look along +y with +z up already
    assert torch.allclose(scene.cameras.world_from_cam[:, :3, 2].mean(0), torch.tensor([0.0, 1.0, 0.0]), atol=1e-3)
    assert (scene.aabb[0] < scene.aabb[1]).all() and scene.aabb[1, 1] >= scene.far - 0.5
    assert scene.splits["test"].tolist() == [0, 8]


def test_llff_is_used_for_a_folder_with_both_when_pycolmap_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("pycolmap", reason="pycolmap (nsw[sfm]) is not installed")
    files.write_llff(tmp_path)
    files.write_colmap(tmp_path, files.forward_views())
    for path in (tmp_path / "images").glob("image*.png"):
        path.unlink()
    assert nsw.scenes.load(tmp_path).points is not None
    monkeypatch.setattr("nsw.scenes.read_colmap.available", lambda: False)
    assert nsw.scenes.load(tmp_path).points is None


def test_unknown_names_are_guessed_at(monkeypatch, tmp_path):
    monkeypatch.setattr("nsw.scenes.bundled.names", lambda: ["toybox", "room"])
    with pytest.raises(nsw.InputError, match='did you mean "toybox"'):
        nsw.scenes.load("toybx")


def test_downloaded_scenes_load_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("NSW_DOWNLOADS", str(tmp_path))
    files.write_blender(tmp_path / "nerf-synthetic" / "nerf_synthetic" / "chairs")
    assert len(nsw.scenes.load("chairs")) == len(nsw.scenes.load("nerf-synthetic/chairs")) == 11
    files.write_llff(tmp_path / "nerf_llff" / "chairs")
    with pytest.raises(nsw.InputError, match="nerf-synthetic/chairs or nerf_llff/chairs"):
        nsw.scenes.load("chairs")


@pytest.mark.skipif(not LEGO.is_dir(), reason="../shared/data/lego is not here")
def test_lego():
    scene = nsw.scenes.load(LEGO)
    assert len(scene.splits["train"]) == 87 and len(scene.splits["test"]) == 13 and scene.images.shape == (100, 200, 200, 4)
    assert torch.allclose(scene.cameras.origins.norm(dim=-1), torch.tensor(4.0311), atol=1e-3)
    pixels, z = project(scene.cameras, scene.aabb.mean(0, keepdim=True))
    assert (z > 0).all() and (pixels[:, 0] - 100).norm(dim=-1).max() < 1.0
    stored = json.loads((LEGO / "transforms_train.json").read_text(encoding="utf-8"))["frames"][0]
    assert torch.allclose(scene.cameras.origins[0], torch.tensor(stored["transform_matrix"])[:3, 3], atol=1e-4)
    grid = torch.cartesian_prod(*[torch.linspace(-1.45, 1.45, 40)] * 3)
    inside = torch.ones(len(grid), dtype=torch.bool)
    for frame in range(0, 100, 4):  # a wrong axis or order would carve everything away
        (xy,), (z,) = project(scene.cameras[frame], grid)
        column, row = xy[:, 0].long().clamp(0, 199), xy[:, 1].long().clamp(0, 199)
        inside &= scene.images[frame, row, column, 3] > 0
    hull = grid[inside]
    assert 0.02 < inside.float().mean() < 0.3
    for frame in (1, 42, 77):  # the hull fills each silhouette, also of views that did not carve it
        (xy,), _ = project(scene.cameras[frame], hull)
        seen = torch.zeros(20, 20, dtype=torch.bool)
        seen[(xy[:, 1] / 10).long().clamp(0, 19), (xy[:, 0] / 10).long().clamp(0, 19)] = True
        opaque = scene.images[frame, 5::10, 5::10, 3] > 0
        assert (seen & opaque).sum() > 0.9 * opaque.sum()
