"""Gaussians as .ply: one vertex a splat with raw values (log scales, logit opacity, quaternion w first).

The layout of the 3DGS authors, which gsplat, nerfstudio, Brush and SuperSplat share: harmonics channel by channel, `f_rest_0`
to `f_rest_14` are red at degree 3. Properties are found by name, in any order, and others are ignored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nsw.errors import InputError
from nsw.formats.checks import built, degree_of, first_bytes, raw_values, read_file
from nsw.formats.compressed_ply import decode, is_compressed
from nsw.formats.ply_header import LIMIT, Element, header_lines, read_elements
from nsw.models.gaussians import Gaussians
from nsw.models.sh import SH0
from nsw.models.state import write_bytes

_COLOURS = ("red", "green", "blue")


def _columns(n_rest: int) -> list[str]:
    rest = [f"f_rest_{i}" for i in range(n_rest)]
    scales, rotation = [f"scale_{i}" for i in range(3)], [f"rot_{i}" for i in range(4)]
    return ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *rest, "opacity", *scales, *rotation]


def save_ply(gaussians: Gaussians, path: Path | str, up: str = "+z") -> Path:
    """Write Gaussians as a binary .ply: x y z, nx ny nz (0), f_dc_*, f_rest_* (all of red first), opacity, scale_*, rot_*.

    Values are raw, except that quaternions are normalised and an isotropic model writes its one scale three times.

    Args:
        up: the direction that is up; "+z" is told in the header as nerfstudio does it, anything else leaves it open.
    """
    path = Path(path)
    raw = raw_values(gaussians, path)
    rest = raw["shN"].transpose(0, 2, 1).reshape(len(gaussians), -1)
    columns = [raw["means"], np.zeros_like(raw["means"]), raw["sh0"][:, 0], rest, raw["opacities"][:, None]]
    table = np.concatenate([*columns, raw["scales"], raw["quats"]], axis=1).astype("<f4")
    head = ["ply", "format binary_little_endian 1.0", *(["comment Vertical Axis: z"] if up == "+z" else [])]
    head += [f"element vertex {len(table)}", *(f"property float {name}" for name in _columns(rest.shape[1]))]
    write_bytes(path, "\n".join([*head, "end_header\n"]).encode("ascii") + table.tobytes())
    return path


def load_ply(path: Path | str) -> Gaussians:
    """Return the Gaussians of a .ply: the common layout with harmonics of degree 0 to 3, or SuperSplat's compressed one.

    Raises:
        InputError: when the file is missing, cut off, of another layout, or holds values that are not finite.
    """
    path = Path(path)
    data = read_file(path)
    elements = read_elements(path, data)
    if is_compressed(elements):
        return built(path, decode(path, data, elements))
    vertex = elements["vertex"]
    n_rest, coloured = _check(path, vertex)
    table = vertex.rows(path, data)

    def read(*columns: str) -> np.ndarray:
        out = np.empty((len(table), len(columns)), np.float32)
        for i, name in enumerate(columns):
            out[:, i] = table[name]
        return out

    sh0 = (read(*_COLOURS) / 255 - 0.5) / SH0 if coloured else read("f_dc_0", "f_dc_1", "f_dc_2")
    raw = {
        "means": read("x", "y", "z"),
        "scales": read("scale_0", "scale_1", "scale_2"),
        "quats": read("rot_0", "rot_1", "rot_2", "rot_3"),
        "opacities": read("opacity")[:, 0],
        "sh0": sh0[:, None],
        "shN": read(*(f"f_rest_{i}" for i in range(3 * n_rest))).reshape(len(table), 3, n_rest).transpose(0, 2, 1),
    }
    return built(path, raw)


def _check(path: Path, vertex: Element) -> tuple[int, bool]:
    """Return how many f_rest there are a channel, and whether 8-bit colours stand in for f_dc (nerfstudio's "rgb" mode)."""
    coloured = "f_dc_0" not in vertex.names and all(vertex.record.fields.get(name, [None])[0] == "u1" for name in _COLOURS)
    needed = [name for name in _columns(0) if name not in ("nx", "ny", "nz") and not (coloured and name.startswith("f_dc"))]
    missing = [name for name in needed if name not in vertex.names]
    if missing:
        raise InputError(f"{path}: no Gaussian .ply, the properties {', '.join(missing)} are missing.")
    rest = {name for name in vertex.names if name.startswith("f_rest_")}
    if degree_of(len(rest) // 3) < 0 or rest != {f"f_rest_{i}" for i in range(len(rest))} or len(rest) % 3:
        raise InputError(f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, counted from 0, found {len(rest)}.")
    return len(rest) // 3, coloured


def up_of(path: Path) -> str:
    """Return "+z" when the header says that z is vertical, as nerfstudio's and ours do, and "-y" otherwise."""
    lines, _ = header_lines(path, first_bytes(path, LIMIT))
    return "+z" if any(line.lower().split() == ["comment", "vertical", "axis:", "z"] for line in lines) else "-y"
