"""`nsw scene`: what the subcommands print."""

from __future__ import annotations

from pathlib import Path

from nsw.errors import InputError
from nsw.runs.table import text_table


def list_scenes() -> int:
    """Print the scenes that `nsw.scenes.load` knows by name, and those that can be fetched."""
    from nsw import scenes
    from nsw.scenes import download

    rows = [[name, "bundled"] for name in scenes.names()]
    rows += [[name, str(path)] for name, path in sorted(download.downloaded().items())]
    print(text_table(["scene", "where"], rows) if rows else "No scene is here yet.")
    print(f"\nTo download (nsw scene get NAME): {', '.join(download.DATASETS)}")
    return 0


def describe_scene(name: str) -> int:
    """Print what a scene holds."""
    from nsw import scenes

    scene = scenes.load(name)
    height, width = scene.images.shape[1:3]
    splits = {**scene.splits, **scene.extra_splits}
    maps = [key for key in ("masks", "points", "depth", "normals", "albedo", "ids") if getattr(scene, key) is not None]
    low, high = ([round(v, 3) for v in corner] for corner in scene.aabb.tolist())
    rows = [
        ["pictures", f"{len(scene)} of {width} x {height}" + (", with alpha" if scene.has_alpha else "")],
        ["splits", ", ".join(f"{split} {len(frames)}" for split, frames in splits.items())],
        ["also", ", ".join(maps) or "nothing else"],
        ["box", f"{low} to {high}"],
        ["near, far", f"{scene.near:.3g}, {scene.far:.3g}"],
        ["background", "a plain backdrop" if scene.background == "plain" else scene.background],
        ["read from", str(scene.source or "")],
        ["digest", scene.digest[:16]],
        *(["note", note] for note in scene.notes),
    ]
    print(text_table([scene.name, ""], rows))
    return 0


def make_scene(name: str, *, size: int | None, spp: int | None, out: Path | None) -> int:
    """Render a bundled scene with Mitsuba; of another size, by default beside the bundled one, where `load` finds it."""
    from nsw.scenes.make import make_scene as make

    folder = make(name, Path(name) if out is None and size is None else out, size=size, spp=spp)
    read = f'"{name}", size={size}' if out is None and size is not None else f'"{folder}"'
    print(f"The scene is in {folder}: nsw.scenes.load({read}) reads it.")
    return 0


def get_scene(name: str, *, out: Path | None) -> int:
    """Download a public data set."""
    from nsw.scenes.download import get

    print(f"The data set is in {get(name, out)}.")
    return 0


def photos_scene(photos: Path, out: Path) -> int:
    """Turn a folder of photos into a scene and print the report on every photo, also when no scene came of it."""
    from nsw.scenes.photos import photos_to_scene

    try:
        report = photos_to_scene(photos, out)
    except InputError as error:
        if (report := getattr(error, "report", None)) is not None:
            print(report.text())
        raise
    print(report.text())
    print(f'The scene is in {out}: nsw.scenes.load("{out}") reads it.')
    return 0
