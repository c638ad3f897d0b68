"""The folder of a bundled scene: pictures, truth maps, transforms.json and manifest.json, each written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from nsw.errors import InputError
from nsw.scenes.exposures import facts
from nsw.scenes.make.describe import Description

PROGRESS = "making.json"
MANIFEST = "manifest.json"
FORMAT = 1
MAIN_SPLITS = ("train", "val", "test")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def png(values: np.ndarray) -> bytes:
    """Return a PNG: uint8 [H, W], [H, W, 3], [H, W, 4], or uint16 [H, W]."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(values).save(out, format="PNG", optimize=True)
    return out.getvalue()


def bytes8(values: np.ndarray) -> np.ndarray:
    """Return [0, 1] as 8 bits, rounded."""
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def depth_unit(description: Description) -> float:
    """World units of one step of a stored depth: 16 bits up to `far`, and not finer than a 20,000th of it, which packs better."""
    return float(description.far) / 20_000


def view_files(description: Description, index: int) -> dict[str, str]:
    """Return the relative file of every map of a view; "images" last, because it says that the view is complete."""
    stem = description.views[index][1]
    return {kind: f"{kind}/{stem}.png" for kind in (*description.maps, "images")}


def write_view(folder: Path, description: Description, index: int, maps: Any) -> None:
    """Write the files of one view, the picture last."""
    rgba = bytes8(maps.rgba)
    if description.transparent:
        rgba[rgba[..., 3] == 0] = 0
    content = {
        "depth": np.round(maps.depth / depth_unit(description)).astype(np.uint16),
        "normals": bytes8(maps.normals * 0.5 + 0.5) * (maps.ids >= 0)[..., None].astype(np.uint8),
        "albedo": bytes8(maps.albedo),
        "ids": (maps.ids + 1).astype(np.uint8),
        "images": rgba if description.transparent else np.ascontiguousarray(rgba[..., :3]),
    }
    for kind, file in view_files(description, index).items():
        write_whole(folder / file, png(content[kind]))


def settings_of(description: Description, **more: Any) -> dict[str, Any]:
    """Return what must be equal for a stopped rendering to be continued."""
    d = description
    cameras = hashlib.sha256(d.cameras.cam_from_world.numpy().tobytes() + d.cameras.Ks.numpy().tobytes()).hexdigest()
    return {"name": d.name, "size": [d.cameras.width, d.cameras.height], "views": len(d.views), "cameras": cameras[:16], **more}


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Note in the folder what is being made there.

    Raises:
        InputError: the folder holds other files, or views made with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder to write the scene to; choose another --out.")
    old = next((folder / name for name in (MANIFEST, PROGRESS) if (folder / name).is_file()), None)
    if old is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder}: holds files that are not a scene being made; choose an empty folder or another --out.")
    else:
        try:
            held = json.loads(old.read_text(encoding="utf-8")).get("settings")
        except (ValueError, AttributeError):
            held = None
        if held != settings:
            different = [k for k in settings if not isinstance(held, dict) or held.get(k) != settings[k]]
            raise InputError(f"{folder}: holds a rendering with other {', '.join(different)}; delete it or choose another --out.")
        return
    try:
        write_json(folder / PROGRESS, {"settings": settings})
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}); choose another --out.") from error


def is_complete(folder: Path, description: Description, index: int) -> bool:
    """Whether all files of a view are there."""
    return all((folder / file).is_file() for file in view_files(description, index).values())


def finish(folder: Path, description: Description, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write transforms.json (and transforms_<split>.json for further paths) and the manifest, and remove the progress file."""
    d = description
    transforms = _transforms(d)
    for name, data in transforms.items():
        write_json(folder / name, data)
    files = sorted([*transforms, *(file for i in range(len(d.views)) for file in view_files(d, i).values())])
    hashes = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    digest = hashlib.sha256("".join(f"{name} {sha}\n" for name, sha in hashes.items()).encode()).hexdigest()
    manifest = {"format": FORMAT, "name": d.name, **facts, "settings": settings, "digest": digest, "files": hashes}
    write_json(folder / MANIFEST, manifest)
    (folder / PROGRESS).unlink(missing_ok=True)


def _transforms(d: Description) -> dict[str, dict[str, Any]]:
    """Return the transforms files: one for train, val and test, one for every further path."""
    K = d.cameras.Ks[0].double().numpy()
    poses = d.cameras.world_from_cam.double().numpy() @ np.diag([1.0, -1.0, -1.0, 1.0])  # to OpenGL axes
    frames: dict[str, list[dict[str, Any]]] = {}
    for i, ((split, stem), pose) in enumerate(zip(d.views, poses, strict=True)):
        matrix = [[float(f"{x:.8g}") for x in row] for row in pose]
        entry = {"file_path": f"images/{stem}.png", "transform_matrix": matrix, **facts(d.exposed(i))}
        if split in MAIN_SPLITS:
            frames.setdefault("transforms.json", []).append({**entry, "split": split})
        else:
            frames.setdefault(f"transforms_{split}.json", []).append(entry)
    lens = {
        "camera_model": "OPENCV",
        "fl_x": K[0, 0],
        "fl_y": K[1, 1],
        "cx": K[0, 2],
        "cy": K[1, 2],
        "w": d.cameras.width,
        "h": d.cameras.height,
    }
    scene = {
        "aabb": d.aabb.tolist(),
        "near": d.near,
        "far": d.far,
        "background": "white" if d.transparent else "none",
        "maps": list(d.maps),
        "depth_unit": depth_unit(d),
        "id_names": list(d.id_names),
        "id_classes": list(d.id_classes),
        "further_paths": sorted(name[11:-5] for name in frames if name != "transforms.json"),
    }
    return {name: {**lens, **(scene if name == "transforms.json" else {}), "frames": frames[name]} for name in sorted(frames)}
