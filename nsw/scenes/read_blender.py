"""Read NeRF-synthetic ("blender") scenes: transforms_train.json and, where present, transforms_val and _test."""

from __future__ import annotations

from pathlib import Path

from nsw.scenes.bounds import synthetic_bounds
from nsw.scenes.frames import assemble, checked_poses
from nsw.scenes.read_transforms import parse_frames, read_json, stated_bounds
from nsw.scenes.scene import Scene


def read(folder: Path, size: int | None = None) -> Scene:
    """Return the scene of a folder with transforms_train.json; transparency is kept.

    The world is that of the files, +z up. Without `aabb` in transforms_train.json the box is [-1.5, 1.5]^3 with near 2
    and far 6 when the cameras stand about 4 from the origin, as in NeRF-synthetic, else the same in proportion
    (`bounds.synthetic_bounds`). Without test and val files, every 8th training view is held out; `Scene.notes` says so.

    Raises:
        InputError: anything missing, of the wrong type, or not a camera.
    """
    frames, notes = [], []
    for split in ("train", "val", "test"):
        path = folder / f"transforms_{split}.json"
        if split == "train" or path.is_file():
            data = read_json(path)
            some, said = parse_frames(data, path, split)
            frames, notes = frames + some, notes + said
            first = data if split == "train" else first
    poses = checked_poses(frames, folder)
    bounds = stated_bounds(first, poses, folder / "transforms_train.json") or synthetic_bounds(poses)
    return assemble(frames, name=folder.name, source=folder, bounds=bounds, size=size, background="white", notes=notes)
