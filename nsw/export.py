"""What leaves the workbench: Gaussians and points as .ply, orbits as .mp4 and .gif.

Files appear whole or not at all. The Gaussian .ply is the layout that the public viewers read: one vertex a splat with
raw values (log scales, logit opacity, quaternion w first), harmonics channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nsw.cameras import Cameras, orbit
from nsw.errors import InputError
from nsw.models.gaussians import Gaussians, GaussiansSettings
from nsw.models.state import replacing, write_bytes
from nsw.scenes.scene import Points, Scene

_PLY_TYPES = {
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("int", "int32"), "<i4"),
}
_HEADER_LIMIT = 65_536


def _splat_columns(n_rest: int) -> list[str]:
    rest = [f"f_rest_{i}" for i in range(n_rest)]
    scales, rotation = [f"scale_{i}" for i in range(3)], [f"rot_{i}" for i in range(4)]
    return ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *rest, "opacity", *scales, *rotation]


def save_ply(gaussians: Gaussians, path: Path | str) -> Path:
    """Write Gaussians as a binary .ply: x y z, nx ny nz (0), f_dc_*, f_rest_* (all of red first), opacity, scale_*, rot_*.

    Values are raw, except that quaternions are normalised and an isotropic model writes its one scale three times.
    """
    if len(gaussians) == 0:
        raise InputError(f"{path}: there are no Gaussians to write; train the model first.")
    with torch.no_grad():
        rest = gaussians.shN.transpose(1, 2).flatten(1)
        columns = [gaussians.means, torch.zeros_like(gaussians.means), gaussians.sh0[:, 0], rest, gaussians.opacities[:, None]]
        columns += [gaussians.log_scales, torch.nn.functional.normalize(gaussians.quats, dim=-1)]
        table = torch.cat(columns, dim=1).cpu().numpy().astype("<f4")
    names = _splat_columns(rest.shape[1])
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}", *(f"property float {n}" for n in names)]
    write_bytes(Path(path), "\n".join([*header, "end_header\n"]).encode("ascii") + table.tobytes())
    return Path(path)


def _read_header(path: Path, data: bytes) -> tuple[int, np.dtype, int]:
    """Return the number of vertices, their record type and where they begin."""
    end = data.find(b"end_header", 0, _HEADER_LIMIT)
    newline = data.find(b"\n", end)
    if not data.startswith(b"ply") or end < 0 or newline < 0:
        raise InputError(f'{path} is not a .ply file: expected a header from "ply" to "end_header".')
    lines = [line.split() for line in data[:end].decode("ascii", "replace").splitlines()[1:]]
    lines = [words for words in lines if words and words[0] not in ("comment", "obj_info")]
    if not lines or lines[0] != ["format", "binary_little_endian", "1.0"]:
        raise InputError(f"{path}: only binary little-endian .ply files hold Gaussians here, convert it first.")
    elements = [i for i, words in enumerate(lines) if words[0] == "element"]
    if not elements or elements[0] != 1 or len(lines[1]) != 3 or lines[1][1] != "vertex" or not lines[1][2].isdigit():
        raise InputError(f'{path}: expected "element vertex N" as the first element of the .ply header.')
    fields = []
    for words in lines[2 : elements[1] if len(elements) > 1 else None]:
        if len(words) != 3 or words[0] != "property" or words[1] not in _PLY_TYPES:
            raise InputError(f'{path}: cannot read the header line "{" ".join(words)}" of a Gaussian .ply.')
        fields.append((words[2], _PLY_TYPES[words[1]]))
    if len({name for name, _ in fields}) != len(fields):
        raise InputError(f"{path}: the .ply header names a property twice; export the file again.")
    return int(lines[1][2]), np.dtype(fields), newline + 1


def load_ply(path: Path | str) -> Gaussians:
    """Return the Gaussians of a .ply in the standard layout; harmonics of degree 0 to 3, further properties are ignored.

    Raises:
        InputError: when the file is missing, cut off, of another layout, or holds values that are not finite.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except OSError as error:
        raise InputError(f"Cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    n, record, begin = _read_header(path, data)
    names = record.names or ()
    rest = sorted((name for name in names if name.startswith("f_rest_")), key=lambda name: (len(name), name))
    missing = [name for name in _splat_columns(0) if name not in names and name not in ("nx", "ny", "nz")]
    if missing:
        raise InputError(f"{path}: no Gaussian .ply, the properties {', '.join(missing)} are missing.")
    if len(rest) not in (0, 9, 24, 45) or rest != [f"f_rest_{i}" for i in range(len(rest))]:
        raise InputError(f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, counted from 0, found {len(rest)}.")
    if n == 0 or len(data) - begin < n * record.itemsize:
        found = (len(data) - begin) // record.itemsize
        raise InputError(f"{path} is cut off or empty: its header promises {n} splats, {found} are there; copy the file again.")
    table = np.frombuffer(data, record, count=n, offset=begin)

    def read(*columns: str) -> Tensor:
        return torch.from_numpy(np.stack([table[name].astype(np.float32) for name in columns], axis=1))

    raw = {
        "means": read("x", "y", "z"),
        "scales": read("scale_0", "scale_1", "scale_2"),
        "quats": read("rot_0", "rot_1", "rot_2", "rot_3"),
        "opacities": read("opacity")[:, 0],
        "sh0": read("f_dc_0", "f_dc_1", "f_dc_2")[:, None],
        "shN": read(*rest).unflatten(1, (3, -1)).transpose(1, 2) if rest else torch.zeros(n, 0, 3),
    }
    for name, value in raw.items():
        bad = (~torch.isfinite(value)).nonzero()
        if len(bad):
            raise InputError(f"{path}: {name} of splat {int(bad[0, 0])} is not finite; export the file again.")
    return Gaussians(GaussiansSettings(sh_degree=round((len(rest) / 3 + 1) ** 0.5) - 1)).fill(**raw)


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


def orbit_images(model: torch.nn.Module, scene: Scene, n: int = 60, size: int | None = None, background: float = 1.0) -> Tensor:
    """Return n pictures [n, H, W, 3] in [0, 1] of a model seen from `orbit_cameras`."""
    from nsw.renderers import render_view

    cameras = orbit_cameras(scene, n, size)
    with torch.no_grad():
        pictures = [render_view(model, cameras[i], background=background).rgb[0].clamp(0, 1).cpu() for i in range(n)]
    return torch.stack(pictures)


def export_run(folder: Path | str, what: str, out: Path | str | None = None, n: int = 90) -> Path:
    """Write what a run has learned: "ply" (Gaussians), "points", "mp4" or "gif" (an orbit of n pictures).

    Args:
        folder: of the run, or of one of its models.
        out: the file; by default it stands in the run's folder, named after the model.

    Raises:
        InputError: when the run, its model or its scene is missing, or the model has no such form.
    """
    from nsw.models.io import load
    from nsw.runs.kept import kept_folder, load_scene
    from nsw.runs.model_card import grey

    suffixes = {"ply": ".ply", "points": "_points.ply", "mp4": ".mp4", "gif": ".gif"}
    if what not in suffixes:
        raise InputError(f'Cannot export "{what}": expected {", ".join(suffixes)}.')
    folder = Path(folder)
    kept = kept_folder(folder)
    model = load(kept)
    path = Path(out) if out is not None else folder / f"{kept.name}{suffixes[what]}"
    if what in ("ply", "points"):
        if not isinstance(model, Gaussians):
            raise InputError(f"The model in {kept} is a {type(model).__name__}: only Gaussians become a .ply, ask for mp4 or gif.")
        return save_ply(model, path) if what == "ply" else save_points(gaussian_points(model), path)
    scene = load_scene(kept)
    if scene is None:
        raise InputError(f"The model in {kept} was kept without a scene: an orbit needs one; ask for ply or points.")
    images = orbit_images(model, scene, n, background=grey(scene.background))
    return save_mp4(images, path) if what == "mp4" else save_gif(images, path)
