"""Small scenes on disk, one writer per layout, around a coloured sphere in the origin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nsw.cameras import Cameras, camera_rays, intrinsics, look_at, orbit

WIDTH, HEIGHT = 32, 24


def views(n: int = 9, width: int = WIDTH, height: int = HEIGHT) -> Cameras:
    """Return n cameras 4 away from the origin."""
    return orbit(n, radius=4.0, elevation_degrees=25.0, fov_x_degrees=50.0, width=width, height=height)


def forward_views(n: int = 9, width: int = WIDTH, height: int = HEIGHT) -> Cameras:
    """Return n cameras in a vertical plane that look along +y."""
    eyes = torch.tensor([[-0.4 + 0.1 * i, -4.0, 0.1 * (i % 3)] for i in range(n)])
    poses = torch.cat([look_at(eye[None], (float(eye[0]), 0.0, float(eye[2]))) for eye in eyes])
    return Cameras(poses, intrinsics(50.0, width, height, n), width, height)


def pictures(cameras: Cameras) -> list[np.ndarray]:
    """Return RGBA pictures of a sphere of radius 1, coloured by its normal."""
    rays = camera_rays(cameras)
    o, d = rays.origins.double(), rays.directions.double()
    b = (o * d).sum(-1)
    root = b * b - (o * o).sum(-1) + 1.0
    normal = o + (-b - root.clamp_min(0).sqrt())[:, None] * d
    rgba = torch.cat([0.5 + 0.5 * normal, torch.ones_like(b)[:, None]], dim=1) * (root > 0)[:, None]
    out = (rgba * 255).round().byte().reshape(len(cameras), cameras.height, cameras.width, 4)
    return list(out.numpy())


def opengl_poses(cameras: Cameras) -> list[list[list[float]]]:
    """Return camera-to-world matrices with OpenGL axes, as JSON writes them."""
    return (cameras.world_from_cam.double() * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)).tolist()


def write_blender(folder: Path, n_train: int = 8, n_test: int = 3, cameras: Cameras | None = None) -> Cameras:
    """Write transforms_train.json, transforms_test.json and RGBA pictures; return all cameras in that order."""
    cameras = cameras or views(n_train + n_test)
    poses, angle = opengl_poses(cameras), 2 * np.arctan(cameras.width / 2 / float(cameras.Ks[0, 0, 0]))
    for split, first, n in (("train", 0, n_train), ("test", n_train, n_test)):
        if n == 0:
            continue
        (folder / split).mkdir(parents=True)
        frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": poses[first + i]} for i in range(n)]
        for i, picture in enumerate(pictures(cameras[list(range(first, first + n))])):
            Image.fromarray(picture).save(folder / split / f"r_{i}.png")
        write_json(folder / f"transforms_{split}.json", {"camera_angle_x": angle, "frames": frames})
    return cameras


def write_transforms(folder: Path, cameras: Cameras | None = None, **keys) -> Cameras:
    """Write transforms.json with fl_x, fl_y, cx, cy, w, h and opaque pictures; further keys go into the file."""
    cameras = cameras or views()
    (folder / "images").mkdir(parents=True)
    K = cameras.Ks[0].double().tolist()
    data = {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2], "w": cameras.width, "h": cameras.height}
    data["frames"] = [
        {"file_path": f"images/{i:03d}.png", "transform_matrix": pose} for i, pose in enumerate(opengl_poses(cameras))
    ]
    for frame, picture in zip(data["frames"], pictures(cameras), strict=True):
        Image.fromarray(picture[..., :3]).save(folder / frame["file_path"])
    write_json(folder / "transforms.json", {**data, **keys})
    return cameras


def write_llff(folder: Path, cameras: Cameras | None = None, folder_name: str = "images", shrink: int = 1) -> Cameras:
    """Write poses_bounds.npy and pictures that are `shrink` times smaller than its rows say."""
    cameras = cameras or forward_views()
    (folder / folder_name).mkdir(parents=True)
    world_from_cam = cameras.world_from_cam.double().numpy()
    rows = []
    for pose, K in zip(world_from_cam, cameras.Ks.double().numpy(), strict=True):
        hwf = np.array([[cameras.height], [cameras.width], [K[0, 0]]])
        matrix = np.concatenate([pose[:3, 1:2], pose[:3, 0:1], -pose[:3, 2:3], pose[:3, 3:], hwf], axis=1)
        rows.append(np.concatenate([matrix.ravel(), [2.5, 7.0]]))
    np.save(folder / "poses_bounds.npy", np.stack(rows))
    small = cameras.resized(cameras.width // shrink, cameras.height // shrink)
    for i, picture in enumerate(pictures(small)):
        Image.fromarray(picture[..., :3]).save(folder / folder_name / f"image{i:03d}.png")
    return cameras


def write_colmap(
    folder: Path, cameras: Cameras | None = None, ending: str = "bin", model: str = "PINHOLE", params=None, where="sparse/0"
):
    """Write a COLMAP model of the cameras with points on the sphere, and pictures; return (cameras, points)."""
    import pycolmap

    cameras = cameras or views()
    K = cameras.Ks[0].double().tolist()
    params = params or [K[0][0], K[1][1], K[0][2], K[1][2]]
    built = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model=model, width=cameras.width, height=cameras.height, params=params, camera_id=1)
    built.add_camera_with_trivial_rig(camera)
    directions = np.random.default_rng(0).normal(size=(60, 3))
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    for point in points:
        built.add_point3D(point, pycolmap.Track(), np.array([200, 100, 50], np.uint8))
    for i, pose in enumerate(cameras.cam_from_world.double().numpy()):
        image = pycolmap.Image(name=f"view_{i:02d}.png", camera_id=1, image_id=i + 1)
        built.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    (folder / where).mkdir(parents=True, exist_ok=True)
    (built.write_binary if ending == "bin" else built.write_text)(str(folder / where))
    (folder / "images").mkdir(exist_ok=True)
    for i, picture in enumerate(pictures(cameras)):
        Image.fromarray(picture[..., :3]).save(folder / "images" / f"view_{i:02d}.png")
    return cameras, points


def write_json(path: Path, data) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_json(path: Path, change) -> None:
    """Apply `change` to the content of a JSON file, in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    write_json(path, data)


def tree(folder: Path) -> dict[str, str]:
    """Return every file below a folder with the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }
