"""Read LLFF scenes: poses_bounds.npy beside a folder of pictures, forward-facing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from nsw.errors import InputError
from nsw.scenes.bounds import Bounds, transformed, upright_rotation
from nsw.scenes.frames import Frame, assemble, checked_poses
from nsw.scenes.images import list_pictures, picture_size
from nsw.scenes.scene import Scene
from nsw.scenes.undistort import Lens

_FOLDERS = ("images", "images_2", "images_4", "images_8")
_NEAREST = 4.0 / 3.0


def read(folder: Path, size: int | None = None) -> Scene:
    """Return the scene of a folder with poses_bounds.npy, one row per picture in the order of the file names.

    A row is a 3x5 matrix and two depths: camera-to-world with axes down, right, backwards; height, width and focal
    length of the full-size pictures; the nearest and furthest depth. The pictures are those of `images`, or of the
    smallest of images_2, images_4 and images_8 that is at least `size` wide; only their shape must be that of the row.

    The world is turned so that the cameras' mean up is +z and their mean view runs along +y, centred on the mean camera
    and scaled so that the nearest depth is 4/3, as NeRF does. The box holds all views between near and far; near is 0.9
    of the nearest depth, far the furthest. Every 8th picture is a test view.

    Raises:
        InputError: not [N, 17] finite numbers, another number of pictures, or a row that is no camera.
    """
    path = folder / "poses_bounds.npy"
    rows = _rows(path)
    pictures = _pictures(folder, len(rows), size, path)
    poses_hwf = rows[:, :15].reshape(-1, 3, 5)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = poses_hwf[..., 1], poses_hwf[..., 0], -poses_hwf[..., 2]
    poses[:, :3, 3] = poses_hwf[..., 3]
    frames = []
    for i, (pose, picture) in enumerate(zip(poses, pictures, strict=True)):
        height, width, focal = poses_hwf[i, :, 4]
        if not (np.isfinite([height, width, focal]).all() and height >= 1 and width >= 1 and focal > 0):
            raise InputError(
                f"{path}: row {i} gives {picture.name} height {height:g}, width {width:g} and focal length {focal:g}, "
                "expected all above 0; write the file again."
            )
        lens = Lens(focal, focal, width / 2, height / 2, round(width), round(height))
        frames.append(Frame(picture.name, picture, pose, lens))
    poses = checked_poses(frames, path)
    near, far = float(rows[:, 15].min()), float(rows[:, 16].max())
    if not (np.isfinite(rows[:, 15:]).all() and 0 < near < far):
        raise InputError(f"{path}: depths run from {near:g} to {far:g}, expected 0 < nearest < furthest; write the file again.")
    scale = _NEAREST / near
    poses = _forward_is_y(transformed(poses, upright_rotation(poses), poses[:, :3, 3].mean(axis=0), scale))
    frames = [Frame(f.name, f.path, pose, f.lens) for f, pose in zip(frames, poses, strict=True)]
    bounds = Bounds(_frustum_box(frames, 0.9 * near * scale, far * scale), 0.9 * near * scale, far * scale)
    return assemble(frames, name=folder.name, source=folder, bounds=bounds, size=size)


def _rows(path: Path) -> Float[np.ndarray, "n 17"]:
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        if isinstance(error, PermissionError):
            raise
        raise InputError(f"{path}: not a whole .npy file of numbers; copy or write it again.") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind not in "fiu" or len(rows) == 0:
        what = f"{rows.dtype} of shape {list(rows.shape)}" if isinstance(rows, np.ndarray) else "several arrays"
        raise InputError(f"{path}: expected numbers of shape [N, 17], found {what}; write the file again.")
    return rows.astype(np.float64)


def _pictures(folder: Path, count: int, size: int | None, path: Path) -> list[Path]:
    """Return the pictures of the folder that suits `size` best."""
    found = {name: list_pictures(folder / name) for name in _FOLDERS if (folder / name).is_dir()}
    found = {name: pictures for name, pictures in found.items() if pictures}
    if not found:
        raise InputError(
            f"{path}: no pictures beside it; looked for {', '.join(f'{name}/' for name in _FOLDERS)}; add the pictures."
        )
    wrong = [f"{name}/ has {len(pictures)}" for name, pictures in found.items() if len(pictures) != count]
    found = {name: pictures for name, pictures in found.items() if len(pictures) == count}
    if not found:
        raise InputError(
            f"{path}: has {count} rows, but {' and '.join(wrong)} pictures; remove or restore pictures until they agree."
        )
    chosen = next(iter(found.values()))
    for pictures in found.values():
        if size is not None and picture_size(pictures[0])[0] >= size:
            chosen = pictures
    return chosen


def _forward_is_y(poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Return poses turned around z so that the mean viewing direction has no x and a positive y."""
    x, y, _ = poses[:, :3, 2].mean(axis=0)
    length = np.hypot(x, y)
    if length < 1e-6:
        return poses
    turn = np.array([[y / length, -x / length, 0.0], [x / length, y / length, 0.0], [0.0, 0.0, 1.0]])
    return transformed(poses, turn, np.zeros(3), 1.0)


def _frustum_box(frames: list[Frame], near: float, far: float) -> Float[np.ndarray, "2 3"]:
    """Return the box of all picture corners at depths near and far."""
    corners = []
    for frame in frames:
        lens = frame.lens
        for x in (-lens.cx / lens.fx, (lens.width - lens.cx) / lens.fx):
            for y in (-lens.cy / lens.fy, (lens.height - lens.cy) / lens.fy):
                for z in (near, far):
                    corners.append(frame.world_from_cam[:3, :3] @ [x * z, y * z, z] + frame.world_from_cam[:3, 3])
    return np.stack([np.min(corners, axis=0), np.max(corners, axis=0)])
