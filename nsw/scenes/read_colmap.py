"""Read COLMAP models, text and binary, through pycolmap (extra `nsw[sfm]`)."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from nsw.errors import InputError
from nsw.scenes.bounds import camera_bounds, focus, transformed, upright_rotation
from nsw.scenes.frames import Frame, assemble, checked_poses
from nsw.scenes.images import list_pictures, picture_size
from nsw.scenes.scene import Points, Scene
from nsw.scenes.undistort import Lens

_MODELS = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", ".")
_PICTURES = ("images", "images_2", "images_4", "images_8", "input", ".")
_FILES = ("cameras", "images", "points3D")
_LENS_PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12)  # by COLMAP's model number, SIMPLE_PINHOLE to THIN_PRISM_FISHEYE


def available() -> bool:
    """Return whether pycolmap is installed, without importing it."""
    return importlib.util.find_spec("pycolmap") is not None


def need_pycolmap(why: str):
    """Return the module pycolmap.

    Raises:
        InputError: it is not installed; the message names the extra.
    """
    if not available():
        raise InputError(f'{why} needs pycolmap, which is not installed: run pip install "nsw[sfm]".')
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value  # its own messages would bury ours
    return pycolmap


def model_folder(folder: Path) -> Path | None:
    """Return where in a folder a COLMAP model lies, or None."""
    for name in _MODELS:
        if any((folder / name / f"cameras.{ending}").is_file() for ending in ("bin", "txt")):
            return folder / name
    return None


def read(folder: Path, size: int | None = None) -> Scene:
    """Return the scene of a COLMAP model and its pictures; every lens model that pycolmap projects is straightened.

    Pictures are looked for in images, images_2, images_4, images_8, input and the folder itself, by the model's names,
    else by names without ending, else (for downsized copies with other names) by order when there are as many. With
    `size`, the smallest copy that is at least that wide is read.

    World: turned so that the cameras' mean up is +z; centred on the point that the cameras look at together, else on
    the median of the points; scaled so that the mean distance of the cameras from that centre is 1. Box, near and far
    come from the points (`bounds.camera_bounds`). Every 8th picture, by name, is a test view.

    Raises:
        InputError: pycolmap missing, a damaged model, pictures missing.
    """
    where = model_folder(folder)
    if where is None:
        raise InputError(f"{folder}: no COLMAP model here; looked for cameras.bin or cameras.txt in {', '.join(_MODELS)}.")
    pycolmap = need_pycolmap(f"{where}: reading a COLMAP model")
    model = _model(pycolmap, where)
    images = sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)
    if not images:
        raise InputError(f"{where}: the model has no registered pictures; run the mapper again with more or better photos.")
    lenses = {key: _lens(camera, f"{where}: camera {key}") for key, camera in model.cameras.items()}
    files = _find_pictures(folder, [image.name for image in images], size, where)
    poses = np.tile(np.eye(4), (len(images), 1, 1))
    for pose, image in zip(poses, images, strict=True):
        pose[:3] = image.cam_from_world().inverse().matrix()
    frames = [
        Frame(image.name, file, pose, lenses[image.camera_id], own_size=True)
        for image, file, pose in zip(images, files, poses, strict=True)
    ]
    poses = checked_poses(frames, where)
    xyz = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    rgb = np.array([point.color for point in model.points3D.values()]).reshape(-1, 3)
    finite = np.isfinite(xyz).all(axis=1)
    rotation, centre, scale = normalisation(poses, xyz[finite])
    poses = transformed(poses, rotation, centre, scale)
    xyz = scale * (xyz[finite] - centre) @ rotation.T
    frames = [replace(frame, world_from_cam=pose) for frame, pose in zip(frames, poses, strict=True)]
    points = Points(torch.from_numpy(xyz).float(), torch.from_numpy(rgb[finite] / 255.0).float()) if len(xyz) else None
    return assemble(frames, name=folder.name, source=folder, bounds=camera_bounds(poses, xyz), size=size, points=points)


def normalisation(
    poses: Float[np.ndarray, "n 4 4"], xyz: Float[np.ndarray, "p 3"]
) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"], float]:
    """Return rotation, centre and scale of the world that `read` uses: x' = scale * rotation (x - centre)."""
    centre, together = focus(poses)
    if not together:
        centre = np.median(xyz, axis=0) if len(xyz) else poses[:, :3, 3].mean(axis=0)
    distance = np.linalg.norm(poses[:, :3, 3] - centre, axis=1).mean()
    return upright_rotation(poses), centre, 1.0 / max(float(distance), 1e-9)


def _model(pycolmap, where: Path):
    ending = "bin" if (where / "cameras.bin").is_file() else "txt"
    for name in _FILES:
        file = where / f"{name}.{ending}"
        if not file.is_file():
            raise InputError(f"{file}: this part of the COLMAP model is missing; copy the model again, with {', '.join(_FILES)}.")
        if file.stat().st_size == 0:
            raise InputError(f"{file}: an empty file; copy the COLMAP model again.")
    _check_whole(where, ending)
    try:
        model = pycolmap.Reconstruction()
        (model.read_binary if ending == "bin" else model.read_text)(str(where))
        if not model.is_valid():
            raise ValueError("inconsistent")
    except (RuntimeError, ValueError, IndexError, KeyError, MemoryError, TypeError):
        raise InputError(f"{where}: the COLMAP model is damaged or cut short; copy it again or run the mapper again.") from None
    return model


def _check_whole(where: Path, ending: str) -> None:
    """Refuse a binary model whose files do not end where their content says, because pycolmap can abort on them."""
    if ending != "bin":
        return
    for name, entry_end in (("cameras", _camera_end), ("images", _image_end), ("points3D", _point_end)):
        file = where / f"{name}.bin"
        data = file.read_bytes()
        at = 8
        try:
            count = struct.unpack_from("<Q", data)[0]
            if count > len(data):
                raise ValueError
            for _ in range(count):
                at = entry_end(data, at)
        except LookupError:  # a lens model newer than the table
            continue
        except (struct.error, ValueError, OverflowError):
            at = -1
        if at != len(data):
            raise InputError(f"{file}: damaged or cut short; copy the COLMAP model again or run the mapper again.")


def _camera_end(data: bytes, at: int) -> int:
    model = struct.unpack_from("<i", data, at + 4)[0]
    if model < 0:
        raise ValueError
    return at + 24 + 8 * _LENS_PARAMETERS[model]


def _image_end(data: bytes, at: int) -> int:
    end_of_name = data.index(b"\0", at + 64) + 1
    return end_of_name + 8 + 24 * struct.unpack_from("<Q", data, end_of_name)[0]


def _point_end(data: bytes, at: int) -> int:
    return at + 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]


def _lens(camera, where: str) -> Lens:
    """Return the lens of a pycolmap camera; its `bend` asks pycolmap, so that every model with a projection works."""
    numbers = [float(n) for n in camera.params]
    if not np.isfinite(numbers).all():
        raise InputError(f"{where} has parameters that are not finite; run the mapper again.")
    if camera.width < 1 or camera.height < 1:
        raise InputError(f"{where} has the size {camera.width} x {camera.height}; run the mapper again.")
    if getattr(camera, "is_spherical", lambda: False)():
        raise InputError(
            f"{where} is a panorama ({camera.model_name}), which no pinhole can show; cut it into perspective views first."
        )
    fx, fy = camera.focal_length_x, camera.focal_length_y
    cx, cy = camera.principal_point_x, camera.principal_point_y
    lens = Lens(fx, fy, cx, cy, camera.width, camera.height)
    if camera.is_undistorted() or not (fx > 0 and fy > 0):
        return lens

    def bend(xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        pixels = np.asarray(camera.img_from_cam(np.column_stack([xy, np.ones(len(xy))])), dtype=np.float64)
        return (pixels - [cx, cy]) / [fx, fy]

    return replace(lens, bend=bend)


def _find_pictures(folder: Path, names: Sequence[str], size: int | None, where: Path) -> list[Path]:
    """Return the picture files of the model's images."""
    complete, first_missing = {}, ""
    for name in _PICTURES:
        if not (folder / name).is_dir():
            continue
        files = _match(folder / name, names)
        if isinstance(files, str):
            first_missing = first_missing or f"{folder / name / files}"
        else:
            complete[name] = files
            if size is None:
                break
    if not complete:
        looked = ", ".join(f"{name}/" for name in _PICTURES[:-1])
        raise InputError(
            f"{where}: the picture {first_missing or names[0]} does not exist; looked in {looked}; restore the pictures."
        )
    chosen = next(iter(complete.values()))
    for files in complete.values():
        if size is not None and picture_size(files[0])[0] >= size:
            chosen = files
    return chosen


def _match(folder: Path, names: Sequence[str]) -> list[Path] | str:
    """Return one file per name, or the first name that has none."""
    direct = [folder / name for name in names]
    missing = [name for name, path in zip(names, direct, strict=True) if not path.is_file()]
    if not missing:
        return direct
    pictures = list_pictures(folder)
    by_stem = {path.stem: path for path in pictures}
    if all(Path(name).stem in by_stem for name in names):
        return [by_stem[Path(name).stem] for name in names]
    if len(pictures) == len(names) and len(missing) == len(names) and folder.name != "images":
        return pictures
    return missing[0]
