"""Read transforms.json scenes: the dialects of nerfstudio and of instant-ngp, and the frames of blender's files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nsw.errors import InputError
from nsw.scenes.bounds import Bounds, camera_bounds, synthetic_bounds, transformed, upright_rotation
from nsw.scenes.frames import Frame, assemble, checked_poses, opencv_from_opengl
from nsw.scenes.images import SUFFIXES, picture_size
from nsw.scenes.points import read_ply_points
from nsw.scenes.scene import Scene
from nsw.scenes.undistort import Lens, brown_lens, fisheye_lens

FILE = "transforms.json"
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
_FISHEYES = ("OPENCV_FISHEYE", "FISHEYE")
_UPRIGHT_TOLERANCE_DEGREES = 30.0


def read(folder: Path, size: int | None = None) -> Scene:
    """Return the scene of a folder with a transforms.json.

    Poses are camera-to-world with OpenGL axes. Focal lengths come from fl_x and fl_y, or from camera_angle_x (radians)
    or x_fov (degrees), each in the frame or for all frames; lenses k1, k2, k3, p1, p2 (OpenCV), or k1 to k4 with
    camera_model OPENCV_FISHEYE or is_fisheye. Splits come from "split" in the frames, from train_filenames,
    val_filenames and test_filenames, or hold out every 8th frame in the order of the file names.

    The world is that of the file: `applied_transform` and `applied_scale` have been applied to the poses and to the
    points of ply_file_path already. It is turned to +z up only when the cameras' mean up is more than 30 degrees off and
    the file gives no box. The box is `aabb`, else instant-ngp's cube of side aabb_scale in the world x scale + offset,
    else from points and cameras (`bounds.camera_bounds`).

    A listed picture that is missing is an error, except in instant-ngp files whose frames carry "sharpness": there the
    missing ones are left out, as instant-ngp does.

    Raises:
        InputError: anything missing, of the wrong type, or not a camera.
    """
    path = folder / FILE
    data = read_json(path)
    frames, notes = parse_frames(data, path)
    if not any(frame.split for frame in frames):
        frames = _split_by_names(data, frames, path)
    if not any(frame.split for frame in frames):
        frames = sorted(frames, key=lambda frame: frame.name)
    poses = checked_poses(frames, path)
    points = None
    if "ply_file_path" in data:
        points = read_ply_points(path.parent / _text(data["ply_file_path"], f'{path}: "ply_file_path"'))
    bounds = stated_bounds(data, poses, path)
    if bounds is None:
        rotation = upright_rotation(poses, _UPRIGHT_TOLERANCE_DEGREES)
        if not np.allclose(rotation, np.eye(3)):
            notes.append("The world was turned so that the cameras' mean upward direction is +z.")
            poses = transformed(poses, rotation, np.zeros(3), 1.0)
            frames = [replace(frame, world_from_cam=pose) for frame, pose in zip(frames, poses, strict=True)]
            if points is not None:
                points = replace(points, xyz=points.xyz @ points.xyz.new_tensor(rotation).T)
        bounds = synthetic_bounds(poses) if points is None else camera_bounds(poses, points.xyz.double().numpy())
    return assemble(
        frames, name=folder.name, source=folder, bounds=bounds, size=size, points=points, background="white", notes=notes
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: no such file, not UTF-8, not JSON, or JSON that is no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON (line {error.lineno}: {error.msg}); write the file again.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8, expected JSON; write the file again.") from None
    except RecursionError:
        raise InputError(f"{path}: JSON nested too deeply to be a list of frames; write the file again.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check that it exists and its rights.") from None
    if not isinstance(data, dict):
        raise InputError(f'{path}: expected a JSON object with "frames", found {_kind(data)}; write the file again.')
    return data


def parse_frames(data: dict[str, Any], path: Path, split: str = "") -> tuple[list[Frame], list[str]]:
    """Return the frames that a transforms file lists, with OpenCV poses, and notes about those left out.

    Args:
        data: the file's content.
        path: the file; pictures are relative to its folder.
        split: the split of frames that do not name their own.
    """
    listed = data.get("frames")
    if not isinstance(listed, list) or not listed:
        found = "none" if "frames" not in data else "an empty list" if listed == [] else _kind(listed)
        raise InputError(f'{path}: expected "frames" to be a list of views, found {found}; add the frames.')
    frames, missing = [], 0
    may_skip = any(isinstance(frame, dict) and "sharpness" in frame for frame in listed)
    for i, item in enumerate(listed):
        where = f"{path}: frame {i}"
        if not isinstance(item, dict):
            raise InputError(f"{where} is {_kind(item)}, expected an object with file_path and transform_matrix; correct it.")
        name = _text(item.get("file_path"), f'{where}: "file_path"')
        where = f'{where} ("{name}")'
        picture = find_picture(path.parent, name)
        if picture is None:
            if may_skip:
                missing += 1
                continue
            raise InputError(f"{where}: its picture {path.parent / name} does not exist; restore it or remove the frame.")
        frames.append(_frame(item, data, path.parent, name.removeprefix("./"), picture, where, split))
    if not frames:
        raise InputError(f"{path}: none of the {len(listed)} listed pictures exists beside it; restore the pictures.")
    return frames, [f"{missing} of {len(listed)} listed pictures do not exist and were left out."] if missing else []


def _frame(item: dict, data: dict, folder: Path, name: str, picture: Path, where: str, split: str) -> Frame:
    key = "transform_matrix" if "transform_matrix" in item else "transform_matrix_start"
    mask = None
    if item.get("mask_path") is not None:
        mask_name = _text(item["mask_path"], f'{where}: "mask_path"')
        mask = find_picture(folder, mask_name)
        if mask is None:
            raise InputError(f'{where}: its mask "{mask_name}" does not exist; restore it or remove "mask_path".')
    split = _text(item["split"], f'{where}: "split"') if "split" in item else split
    if split not in ("", "train", "val", "test"):
        raise InputError(f'{where}: unknown split "{split}"; expected train, val or test.')
    return Frame(
        name=name,
        path=picture,
        world_from_cam=opencv_from_opengl(matrix(item.get(key), f'{where}: "transform_matrix"')[None])[0],
        lens=_lens(item, data, picture, where),
        split=split,
        mask=mask,
        own_size="w" in item and "h" in item,
    )


def find_picture(folder: Path, name: str) -> Path | None:
    """Return the picture that a file name means; blender and instant-ngp write names without their ending."""
    path = folder / name
    try:
        if path.is_file():
            return path
        endings = [ending for suffix in SUFFIXES for ending in (suffix, suffix.upper())]
        return next((p for p in (path.with_name(path.name + e) for e in endings) if p.is_file()), None)
    except (OSError, ValueError):  # a name with a zero byte, or longer than the system takes
        return None


def _lens(item: dict, data: dict, picture: Path, where: str) -> Lens:
    """Return a frame's lens; what the frame says wins over what the file says for all frames."""
    model = str(item.get("camera_model", data.get("camera_model", "OPENCV"))).upper()
    if model not in _PINHOLES + _FISHEYES:
        raise InputError(f"{where}: camera model {model} is not a perspective or fisheye lens; undistort the pictures first.")

    def value(*keys: str) -> float | None:
        for source in (item, data):
            for key in keys:
                if source.get(key) is not None:
                    return number(source[key], f'{where}: "{key}"')
        return None

    width, height = value("w"), value("h")
    if not width or not height or width <= 0 or height <= 0:
        width, height, _ = picture_size(picture)
    fx = _focal(item, data, "x", width, where)
    fy = _focal(item, data, "y", height, where)
    if fx is None and fy is None:
        raise InputError(f"{where}: no focal length: expected fl_x or camera_angle_x in the frame or for all frames; add it.")
    fx, fy = fx if fx is not None else fy, fy if fy is not None else fx
    cx, cy = value("cx"), value("cy")
    numbers = (fx, fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy, int(width), int(height))
    k1, k2, k3, k4, p1, p2 = (value(key) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if model in _FISHEYES or item.get("is_fisheye", data.get("is_fisheye")) is True:
        return fisheye_lens(*numbers, k1=k1, k2=k2, k3=k3, k4=k4)
    return brown_lens(*numbers, k1=k1, k2=k2, p1=p1, p2=p2, k3=k3)


def _focal(item: dict, data: dict, axis: str, pixels: float, where: str) -> float | None:
    for source in (item, data):
        if source.get(f"fl_{axis}") is not None:
            return number(source[f"fl_{axis}"], f'{where}: "fl_{axis}"')
        for key, unit in ((f"camera_angle_{axis}", 1.0), (f"{axis}_fov", math.pi / 180.0)):
            if source.get(key) is not None:
                angle = number(source[key], f'{where}: "{key}"') * unit
                if not 0 < angle < math.pi:
                    raise InputError(f'{where}: "{key}" is {source[key]}, expected an angle between 0 and 180 degrees; correct it.')
                return 0.5 * pixels / math.tan(0.5 * angle)
    return None


def _split_by_names(data: dict, frames: list[Frame], path: Path) -> list[Frame]:
    """Return frames with the splits of train_filenames, val_filenames and test_filenames; unnamed frames are left out."""
    split_of: dict[Path, str] = {}
    for split in ("train", "val", "test"):
        names = data.get(f"{split}_filenames", [])
        if not isinstance(names, list):
            raise InputError(f'{path}: "{split}_filenames" is {_kind(names)}, expected a list of file names; correct it.')
        for name in names:
            picture = find_picture(path.parent, _text(name, f'{path}: "{split}_filenames"'))
            if picture is None or picture not in {frame.path for frame in frames}:
                raise InputError(f'{path}: "{split}_filenames" names "{name}", which is no frame of the file; correct it.')
            split_of.setdefault(picture, split)
    if not split_of:
        return frames
    return [replace(frame, split=split_of[frame.path]) for frame in frames if frame.path in split_of]


def stated_bounds(data: dict, poses: Float[np.ndarray, "n 4 4"], path: Path) -> Bounds | None:
    """Return the box that the file gives: `aabb`, or instant-ngp's unit cube times aabb_scale."""
    if data.get("aabb") is not None:
        box = matrix(data["aabb"], f'{path}: "aabb"', (2, 3))
        if not (box[1] > box[0]).all() or not np.isfinite(box).all():
            raise InputError(f'{path}: "aabb" must be [[min x, y, z], [max x, y, z]] with max above min; correct it.')
    elif data.get("aabb_scale") is not None:
        side = number(data["aabb_scale"], f'{path}: "aabb_scale"')
        scale = number(data.get("scale", 0.33), f'{path}: "scale"')
        offset = data.get("offset", 0.5)
        offset = matrix(offset, f'{path}: "offset"', (3,)) if isinstance(offset, list) else number(offset, f'{path}: "offset"')
        if not (side > 0 and scale > 0):
            raise InputError(f'{path}: "aabb_scale" and "scale" must be above 0, found {side} and {scale}; correct them.')
        box = (0.5 + np.array([-0.5, 0.5])[:, None] * side - np.broadcast_to(offset, 3)) / scale
    else:
        return None
    origins = poses[:, :3, 3]
    to_corners = np.linalg.norm(np.maximum(np.abs(origins - box[0]), np.abs(origins - box[1])), axis=1)
    outside = np.linalg.norm(np.maximum(np.maximum(box[0] - origins, origins - box[1]), 0.0), axis=1)
    extent = float((box[1] - box[0]).max())
    return Bounds(box, max(float(outside.min()), 0.005 * extent), float(to_corners.max()))


def matrix(value: Any, where: str, shape: tuple[int, ...] = (4, 4)) -> Float[np.ndarray, "..."]:
    """Return nested lists of numbers as an array; a pose may come without its last row."""
    if value is None:
        raise InputError(f"{where} is missing; add it.")
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is not None and shape == (4, 4) and array.shape == (3, 4):
        array = np.concatenate([array, [[0.0, 0.0, 0.0, 1.0]]])
    if array is None or array.shape != shape:
        raise InputError(f"{where} is not {' x '.join(map(str, shape))} numbers; correct it.")
    return array


def number(value: Any, where: str) -> float:
    """Return a JSON number as a float that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        found = f"{value:.4g}" if isinstance(value, float) else _kind(value)
        raise InputError(f"{where} is {found}, expected a finite number; correct it.")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where} is {_kind(value)}, expected text; correct it.")
    if not value.isprintable():
        raise InputError(f"{where} contains a control character or a line break; correct it.")
    return value


def _kind(value: Any) -> str:
    kinds: Sequence[tuple[type, str]] = (
        (type(None), "missing"),
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number" if value == value else "not a number"),
        (str, f'the text "{str(value)[:40]}"'),
        (list, "a list"),
        (dict, "an object"),
    )
    return next((text for kind, text in kinds if isinstance(value, kind)), type(value).__name__)
