"""Bundled scenes: path-traced pictures with their depth, normals, albedo and instance ids."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from nsw.cameras import camera_rays
from nsw.errors import InputError
from nsw.scenes.scene import Points, Scene

ORDER = ("toybox", "tea", "shelf", "room", "town", "toybox_defocus", "toybox_motion")
N_POINTS = 4000


def data_dir() -> Path:
    """Return the folder of the bundled scenes: $NSW_DATA, else `data` beside the package, else the user's data folder."""
    if os.environ.get("NSW_DATA"):
        return Path(os.environ["NSW_DATA"]).expanduser()
    beside = Path(__file__).resolve().parents[2] / "data"
    if any((beside / name / "manifest.json").is_file() for name in ORDER):
        return beside
    import pooch

    return Path(pooch.os_cache("nsw")) / "data"


def names() -> list[str]:
    """Return the names of the scenes in `data_dir()`."""
    folder = data_dir()
    if not folder.is_dir():
        return []
    found = sorted(p.parent.name for p in folder.glob("*/manifest.json") if (p.parent / "transforms.json").is_file())
    return [n for n in ORDER if n in found] + [n for n in found if n not in ORDER]


def folder_of(name: str, width: int | None = None) -> Path:
    """Return a bundled scene's folder, or that of its smallest rendering NAME-PIXELS beside it that is as wide as asked.

    Where none is wide enough it is the widest one's; the bundled one's where no width is asked for.
    """
    own = data_dir() / name
    if width is None:
        return own
    found = {int(match[1]): path for path in own.parent.glob(f"{name}-*") if (match := re.fullmatch(r".*-(\d+)", path.name))}
    found = {size: path for size, path in found.items() if all((path / f).is_file() for f in ("manifest.json", "transforms.json"))}
    found[_stored_width(own)] = own
    return found[min((size for size in found if size >= width), default=max(found))]


def _stored_width(folder: Path) -> int:
    """Return the width of a scene's pictures as its transforms.json says, 0 where it does not (the reader says what is wrong)."""
    from nsw.scenes.read_transforms import read_json

    width = read_json(folder / "transforms.json").get("w")
    return width if isinstance(width, int) else 0


def load_bundled(folder: str | Path) -> Scene:
    """Return the scene of a folder written by `nsw.scenes.make.make_scene`, with all its truth maps.

    The points are back-projected from the depth of the training views, `N_POINTS` at most, as structure from motion would
    give them but without its errors.

    Raises:
        InputError: a file is missing, cut short, of another size, or says something that cannot be.
    """
    from nsw.scenes.frames import assemble, checked_poses, digest
    from nsw.scenes.read_transforms import parse_frames, read_json, stated_bounds

    folder = Path(folder)
    path = folder / "transforms.json"
    data, manifest = read_json(path), read_json(folder / "manifest.json")
    if manifest.get("format") != 1:
        raise InputError(
            f'{folder / "manifest.json"}: "format" is {manifest.get("format")!r}, expected 1; update nsw or make the scene again.'
        )
    frames, _ = parse_frames(data, path)
    for name in _texts(data, "further_paths", path):
        other = folder / f"transforms_{name}.json"
        frames += _path_frames(other, name)
    poses = checked_poses(frames, path)
    bounds = stated_bounds(data, poses, path)
    if bounds is None:
        raise InputError(f'{path}: "aabb" is missing; make the scene again.')
    bounds = replace(bounds, near=_positive(data, "near", path), far=_positive(data, "far", path))
    scene = assemble(
        frames,
        name=str(manifest.get("name", folder.name)),
        source=folder,
        bounds=bounds,
        background=str(data.get("background", "white")),
    )
    further = {n: torch.tensor([i for i, f in enumerate(frames) if f.split == n]) for n in _texts(data, "further_paths", path)}
    scene = replace(
        scene,
        extra_splits=further,
        names=[frame.path.stem for frame in frames],
        id_names=_texts(data, "id_names", path),
        digest=digest(scene.images, scene.cameras),
        **_maps(scene, [frame.path for frame in frames], data, path),
    )
    return replace(scene, points=_points(scene)) if scene.depth is not None else scene


def _path_frames(path: Path, split: str) -> list:
    """Return the frames of a further path, its name as their split."""
    from nsw.scenes.read_transforms import parse_frames, read_json

    return [replace(frame, split=split) for frame in parse_frames(read_json(path), path)[0]]


def _maps(scene: Scene, pictures: list[Path], data: dict, path: Path) -> dict[str, torch.Tensor]:
    """Return the stored truth maps by their names in `Scene`."""
    stored = _texts(data, "maps", path)
    raw = {kind: np.stack([_map(p.parent.parent / kind / p.name, kind, scene) for p in pictures]) for kind in stored}
    out = {}
    if "depth" in raw:
        out["depth"] = torch.from_numpy(raw["depth"].astype(np.float32) * np.float32(_positive(data, "depth_unit", path)))
    if "normals" in raw:
        normals = torch.from_numpy(raw["normals"].astype(np.float32) / 127.5 - 1.0)
        hit = torch.from_numpy((raw["normals"] > 0).any(-1, keepdims=True))
        out["normals"] = torch.where(hit, torch.nn.functional.normalize(normals, dim=-1), 0.0)
    if "albedo" in raw:
        out["albedo"] = torch.from_numpy(raw["albedo"])
    if "ids" in raw:
        out["ids"] = torch.from_numpy(raw["ids"].astype(np.int16) - 1)
        count = len(_texts(data, "id_names", path))
        if int(out["ids"].max()) >= count:
            raise InputError(
                f'{path}: the ids name instance {int(out["ids"].max())}, but "id_names" has {count}; make the scene again.'
            )
    return out


def _map(path: Path, kind: str, scene: Scene) -> np.ndarray:
    """Return one stored map: uint16 [H, W] for depth, uint8 [H, W] for ids, uint8 [H, W, 3] otherwise."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            values = np.array(image)
    except FileNotFoundError:
        raise InputError(f"{path}: the scene's {kind} map is missing; restore it or make the scene again.") from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: the {kind} map is damaged or cut short ({reason}); restore it or make the scene again."
        ) from None
    shape = (scene.cameras.height, scene.cameras.width) + (() if kind in ("depth", "ids") else (3,))
    if values.shape != shape:
        raise InputError(f"{path}: the {kind} map has shape {list(values.shape)}, expected {list(shape)}; make the scene again.")
    return values


def _points(scene: Scene) -> Points:
    """Return surface points of the training views: the same for the same scene, spread over views and pixels."""
    index = scene.splits["train"]
    depth = scene.depth[index].flatten()
    candidates = (depth > 0).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:N_POINTS]].sort().values
    rays = camera_rays(scene.cameras[index])[chosen]
    xyz: Float[torch.Tensor, "P 3"] = rays.at_depth(depth[chosen])
    rgb = scene.images[index][..., :3].reshape(-1, 3)[chosen].float() / 255.0
    return Points(xyz, rgb)


def _texts(data: dict, key: str, path: Path) -> list[str]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise InputError(f'{path}: "{key}" must be a list of names; make the scene again.')
    return value


def _positive(data: dict, key: str, path: Path) -> float:
    from nsw.scenes.read_transforms import number

    value = number(data.get(key), f'{path}: "{key}"')
    if not value > 0:
        raise InputError(f'{path}: "{key}" is {value}, expected a number above 0; make the scene again.')
    return value
