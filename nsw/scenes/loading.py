"""One call for every scene: bundled, downloaded, or a folder in any of the common layouts."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nsw.errors import InputError
from nsw.scenes.scene import Scene

_LOOKED_FOR = "manifest.json, transforms_train.json, transforms.json, COLMAP's sparse/0 or cameras.bin, poses_bounds.npy"


def load(name_or_path: str | Path, size: int | None = None) -> Scene:
    """Return a scene by its bundled or downloaded name, or from a folder whose layout is recognised.

    A plain name means the bundled scene of that name, then the downloaded one, then a folder here; a path with a
    separator ("./toybox") always means the folder. Folders are tried in this order: manifest.json with transforms.json
    (bundled), transforms_train.json (NeRF-synthetic), transforms.json (nerfstudio, instant-ngp), a COLMAP model in
    sparse/0, sparse, colmap/sparse/0 or the folder itself, poses_bounds.npy (LLFF). A folder with both a COLMAP model and
    poses_bounds.npy is read as COLMAP where pycolmap is installed, because it has points, else as LLFF.

    Pictures are never enlarged: where a bundled scene is smaller than `size`, a larger rendering of it that `nsw scene make`
    left beside it is taken; else the stored size stays, and `Scene.notes` says so.

    Args:
        name_or_path: "toybox", "lego", "photos/desk", ...
        size: picture width to area-average to; None keeps the stored size of the bundled scene or of the folder.

    Raises:
        InputError: nothing of that name, no known layout, or anything wrong inside it.
    """
    from nsw.scenes import bundled
    from nsw.scenes.frames import checked_size, with_digest

    if not isinstance(name_or_path, str | Path):
        raise InputError(f"Cannot load {name_or_path!r}: expected the name or a folder of a scene, as text or as a path.")
    size = size if size is None else checked_size(size)
    text = str(name_or_path)
    plain = isinstance(name_or_path, str) and "/" not in text and "\\" not in text
    folder = None
    if plain and text in bundled.names():
        folder = bundled.folder_of(text, size)
    elif not _exists(Path(text)):
        folder = _downloaded(text)
    folder = folder or Path(name_or_path).expanduser()
    try:
        if not text.strip() or not _exists(folder):
            raise InputError(_unknown(text))
        if folder.is_file():
            if folder.name != "transforms.json":
                raise InputError(f"{folder}: is a file, expected a scene's folder; give the folder that holds it.")
            folder = folder.parent
        read = reader_of(folder)
        scene = read(folder) if read is bundled.load_bundled else read(folder, size)
    except PermissionError as error:
        raise InputError(
            f"{error.filename or folder}: no permission to read it; change its rights or choose another folder."
        ) from None
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}); check the disk and the path."
        ) from None
    if read is bundled.load_bundled and size is not None and size < scene.cameras.width:
        scene = with_digest(scene.resized(size))
    return scene if size is None or size <= scene.cameras.width else _noted(scene, size, folder)


def _noted(scene: Scene, size: int, folder: Path) -> Scene:
    """Return the scene with a note that its pictures are smaller than was asked for."""
    from nsw.scenes import bundled

    note = f"The pictures of {scene.name} are {scene.cameras.width} pixels wide, {size} were asked for: they are not enlarged."
    if folder.parent == bundled.data_dir() and scene.name in bundled.ORDER:
        note += f" `nsw scene make {scene.name} --size {size}` renders larger ones, which are then found by themselves."
    return replace(scene, notes=(*scene.notes, note))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name longer than the system takes, or with a zero byte
        return False


def reader_of(folder: Path) -> Callable[..., Scene]:
    """Return the reader for a folder's layout.

    Raises:
        InputError: none fits; the message lists what was looked for.
    """
    from nsw.scenes import bundled, read_blender, read_colmap, read_llff, read_transforms

    if (folder / "manifest.json").is_file() and (folder / "transforms.json").is_file():
        return bundled.load_bundled
    if (folder / "transforms_train.json").is_file():
        return read_blender.read
    if (folder / "transforms.json").is_file():
        return read_transforms.read
    has_model = read_colmap.model_folder(folder) is not None
    if (folder / "poses_bounds.npy").is_file() and not (has_model and read_colmap.available()):
        return read_llff.read
    if has_model:
        return read_colmap.read
    entries = sorted(path.name for path in folder.iterdir())
    found = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "") if entries else "an empty folder"
    inside = [name for name in entries if (folder / name).is_dir() and is_scene(folder / name)]
    advice = f'perhaps you mean "{folder / inside[0]}"' if inside else "photos without poses go through `nsw scene photos`"
    raise InputError(f"{folder}: not a scene; looked for {_LOOKED_FOR}; found {found}; {advice}.")


def is_scene(folder: Path) -> bool:
    """Return whether a folder has one of the layouts that `load` reads, by file names alone."""
    from nsw.scenes import read_colmap

    names = ("transforms.json", "transforms_train.json", "poses_bounds.npy")
    return any((folder / name).is_file() for name in names) or read_colmap.model_folder(folder) is not None


def _downloaded(text: str) -> Path | None:
    """Return the downloaded scene of a name, "lego" or, where two data sets have one, "nerf-synthetic/lego"."""
    from nsw.scenes import download

    found = {name: path for name, path in download.downloaded().items() if text in (name, name.partition("/")[2])}
    if len(found) > 1:
        raise InputError(f'"{text}" is in several data sets: say which, {" or ".join(found)}.')
    return next(iter(found.values()), None)


def _unknown(text: str) -> str:
    from nsw.scenes import bundled, download

    known = [*bundled.names(), *sorted(download.downloaded())]
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
    guess = (
        f'did you mean "{near[0]}"' if near else f"give a folder, or download {', '.join(download.DATASETS)} with `nsw scene get`"
    )
    return f'No scene "{text[:80]}": there is no such folder, and the scenes here are {", ".join(known) or "none"}; {guess}.'
