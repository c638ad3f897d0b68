"""What leaves the workbench: Gaussians as .ply, .spz, .glb and .splat (see `nsw.formats`), points as .ply, meshes, .mp4, .gif.

Files appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nsw.cameras import Cameras, orbit
from nsw.errors import InputError
from nsw.formats import SUFFIXES, load, save, up_of
from nsw.formats.glb import save_glb
from nsw.formats.ply import load_ply, save_ply
from nsw.formats.splat import save_splat
from nsw.formats.spz import save_spz
from nsw.models.gaussians import Gaussians
from nsw.models.state import replacing, write_bytes
from nsw.scenes.scene import Points, Scene

__all__ = ["load_ply", "save_glb", "save_ply", "save_splat", "save_spz"]  # formats by name; `nsw.formats.save` goes by the suffix


def save_points(points: Points, path: Path | str) -> Path:
    """Write coloured points as a binary .ply that mesh viewers open."""
    import trimesh

    if len(points) == 0:
        raise InputError(f"{path}: there are no points to write.")
    colours = (points.rgb.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    cloud = trimesh.PointCloud(points.xyz.detach().cpu().numpy(), colors=colours)
    write_bytes(Path(path), cloud.export(file_type="ply"))
    return Path(path)


def gaussian_points(gaussians: Gaussians, min_opacity: float = 0.1) -> Points:
    """Return the centres and base colours of splats at least as opaque as `min_opacity`."""
    with torch.no_grad():
        shown = gaussians.activated_opacities >= min_opacity
        return Points(gaussians.means[shown].cpu(), gaussians.base_rgb[shown].clamp(0, 1).cpu())


def save_mesh(mesh, path: Path | str) -> Path:
    """Write a mesh (trimesh.Trimesh) in the format of the file's name: .ply, .obj, .stl or .glb.

    glTF has y up: a .glb is turned so that the world's z points up in every viewer.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("ply", "obj", "stl", "glb"):
        raise InputError(f"{path}: a mesh is written as .ply, .obj, .stl or .glb.")
    if len(mesh.faces) == 0:
        raise InputError(f"{path}: the mesh has no faces; there is nothing to write.")
    if kind == "glb":
        mesh = mesh.copy()
        mesh.apply_transform([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    data = mesh.export(file_type=kind)
    write_bytes(path, data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def _frames(images: Tensor | np.ndarray | Sequence, path: Path | str) -> np.ndarray:
    """Return pictures as uint8 [n, H, W, 3]."""
    if isinstance(images, list | tuple):
        images = [torch.as_tensor(image).detach().cpu() for image in images]
        if len({tuple(image.shape) for image in images}) > 1:
            raise InputError(f"{path}: all frames of a film need one size, got {sorted({tuple(i.shape) for i in images})}.")
        images = torch.stack(images) if images else torch.zeros(0)
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(f"{path}: a film needs frames [n, H, W, 3] with n > 0, got shape {list(array.shape)}.")
    return array if array.dtype == np.uint8 else (np.clip(np.nan_to_num(array), 0, 1) * 255).round().astype(np.uint8)


def save_mp4(images: Tensor | np.ndarray | Sequence, path: Path | str, fps: float = 30.0) -> Path:
    """Write pictures [n, H, W, 3] (floats in [0, 1] or uint8) as H.264 that browsers play: 4:2:0, even sizes.

    An odd last row or column is repeated, because 4:2:0 halves both sides.
    """
    import imageio_ffmpeg

    frames, path = _frames(images, path), Path(path)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    with replacing(path, ".mp4") as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (frames.shape[2], frames.shape[1]),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            quality=None,
            output_params=["-crf", "18", "-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        if temporary.stat().st_size == 0:
            raise InputError(f"Cannot write {path}: ffmpeg wrote nothing; is the disk full?")
    return path


def save_gif(images: Tensor | np.ndarray | Sequence, path: Path | str, fps: float = 15.0) -> Path:
    """Write pictures [n, H, W, 3] as an endless .gif."""
    import io

    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in _frames(images, path))
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    write_bytes(Path(path), buffer.getvalue())
    return Path(path)


def orbit_cameras(scene: Scene, n: int = 60, size: int | None = None) -> Cameras:
    """Return n cameras around the middle of the scene's box, as far, as high and as wide as its training cameras are.

    When most training cameras stand inside the box, a room is seen from within: the path is then the scene's own
    "walk", or else n of its training cameras in their order.
    """
    origins, box = scene.views("train").origins, scene.aabb.float()
    inside = ((origins > box[0]) & (origins < box[1])).all(dim=1).float().mean()
    if inside > 0.5:
        frames = scene.frames("walk" if "walk" in scene.extra_splits else "train")
        cameras = scene.cameras[frames[torch.linspace(0, len(frames) - 1, n).round().long()]]
        return cameras if size is None else cameras.resized(size, round(size * cameras.height / cameras.width))
    middle = box.mean(0)
    offset = origins - middle
    radius = float(offset.norm(dim=1).median())
    elevation = float(torch.rad2deg(torch.asin((offset[:, 2] / offset.norm(dim=1)).clamp(-1, 1))).median())
    width = size or scene.cameras.width
    height = round(width * scene.cameras.height / scene.cameras.width)
    fov = float(torch.rad2deg(2 * torch.atan(0.5 * scene.cameras.width / scene.cameras.Ks[0, 0, 0])))
    return orbit(n, radius, min(max(elevation, 10.0), 50.0), middle.tolist(), fov, width, height)


def orbit_images(
    model: torch.nn.Module, scene: Scene, n: int = 60, size: int | None = None, background: float | Tensor | None = None
) -> Tensor:
    """Return n pictures [n, H, W, 3] in [0, 1] of a model seen from `orbit_cameras`, by default over what stands behind it."""
    from nsw.renderers import render_view

    cameras = orbit_cameras(scene, n, size)
    background = scene.behind if background is None else background
    with torch.no_grad():
        pictures = [render_view(model, cameras[i], background=background).rgb[0].clamp(0, 1).cpu() for i in range(n)]
    return torch.stack(pictures)


def _what(word: str) -> str:
    """Return the suffix of what a person asks for, without the dot for pictures and points.

    Raises:
        InputError: naming the words there are.
    """
    words = [suffix[1:] for suffix in SUFFIXES] + ["points", "mp4", "gif"]
    if word not in words:
        raise InputError(f'Cannot export "{word}": expected {", ".join(words)}.')
    return f".{word}" if f".{word}" in SUFFIXES else word


def _save_splats(gaussians: Gaussians, what: str, path: Path, up: str) -> Path:
    """Write Gaussians, or only their centres, as `what` has it, whatever the file is called."""
    if what == "points":
        return save_points(gaussian_points(gaussians), path)
    return save(gaussians, path, up, what)


def export_file(path: Path | str, what: str, out: Path | str | None = None) -> Path:
    """Write a file of Gaussians in another format, or its points.

    Args:
        path: a .ply, .splat, .spz or .glb.
        what: ply, splat, spz, glb or points.
        out: the file; by default it stands beside the other one.

    Raises:
        InputError: when the file cannot be read or written, or would replace itself.
    """
    path, what = Path(path), _what(what)
    if what in ("mp4", "gif"):
        raise InputError(f"{path} is a file without a scene: an orbit needs one; nsw view {path.name} shows it.")
    out = Path(out) if out is not None else path.with_name(path.stem + ("_points.ply" if what == "points" else what))
    if out.exists() and out.samefile(path):
        raise InputError(f"{out} would replace the file that is read: give another name with --out.")
    return _save_splats(load(path), what, out, up_of(path))


def export_run(folder: Path | str, what: str, out: Path | str | None = None, n: int = 90) -> Path:
    """Write what a run has learned: "ply", "spz", "glb", "splat" (Gaussians), "points", "mp4" or "gif" (an orbit of n pictures).

    Args:
        folder: of the run, or of one of its models.
        out: the file; by default it stands in the run's folder, named after the model.

    Raises:
        InputError: when the run, its model or its scene is missing, or the model has no such form.
    """
    from nsw.models.io import load as load_model
    from nsw.runs.kept import kept_folder, load_scene

    kind, folder = _what(what), Path(folder)
    kept = kept_folder(folder)
    model = load_model(kept)
    path = Path(out) if out is not None else folder / (kept.name + ("_points.ply" if what == "points" else f".{what}"))
    if what not in ("mp4", "gif"):
        if not isinstance(model, Gaussians):
            raise InputError(
                f"The model in {kept} is a {type(model).__name__}: only Gaussians are written as {what}, ask for mp4 or gif."
            )
        return _save_splats(model, kind, path, "+z")
    scene = load_scene(kept)
    if scene is None:
        raise InputError(f"The model in {kept} was kept without a scene: an orbit needs one; ask for ply or points.")
    images = orbit_images(model, scene, n, background=scene.behind)
    return save_mp4(images, path) if what == "mp4" else save_gif(images, path)
