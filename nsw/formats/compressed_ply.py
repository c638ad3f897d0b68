"""SuperSplat's compressed .ply: chunks of 256 splats, each with the box that its members are quantised in.

A vertex is four words: position and scale in 11, 10 and 11 bits between the chunk's least and greatest value, a rotation in
2 + 3 x 10 bits (which component is largest, then the others), and colour with opacity in 4 x 8 bits. A third table may hold
the harmonics in 8 bits over [-4, 4]. See the "compressed PLY" format of PlayCanvas, github.com/playcanvas/splat-transform.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nsw.errors import InputError
from nsw.formats.checks import degree_of, logit
from nsw.formats.ply_header import Element
from nsw.models.sh import SH0

CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_COLOURS = [f"{end}_{name}" for name in "rgb" for end in ("min", "max")]
_BOX = [f"{end}_{name}" for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z") for end in ("min", "max")]


def is_compressed(elements: dict[str, Element]) -> bool:
    """Return whether the tables are those of a compressed .ply."""
    return "chunk" in elements and set(_PACKED) <= set(elements["vertex"].names)


def decode(path: Path, data: bytes, elements: dict[str, Element]) -> dict[str, np.ndarray]:
    """Return raw values of all splats.

    Raises:
        InputError: when tables are cut off, disagree in length or lack a property.
    """
    chunk, vertex = elements["chunk"], elements["vertex"]
    coloured = any(name in chunk.names for name in _COLOURS)
    lacking = [name for name in _BOX + coloured * _COLOURS if name not in chunk.names]
    if lacking or any(vertex.record[name] != np.dtype("<u4") for name in _PACKED):
        raise InputError(f"{path}: no compressed .ply that can be read, its chunks or packed words are of another kind.")
    if chunk.count != -(-vertex.count // CHUNK):
        raise InputError(f"{path}: {vertex.count} splats need {-(-vertex.count // CHUNK)} chunks, its header has {chunk.count}.")
    splats, boxes = vertex.rows(path, data), chunk.rows(path, data)
    of = np.arange(len(splats)) // CHUNK

    def between(names: tuple[str, ...], unit: np.ndarray, prefix: str = "") -> np.ndarray:
        low, high = (
            np.stack([boxes[f"{end}_{prefix}{name}"][of] for name in names], 1).astype(np.float64) for end in ("min", "max")
        )
        return low * (1 - unit) + high * unit

    colour = _bits(splats["packed_color"], 8, 8, 8, 8)
    rgb = between(("r", "g", "b"), colour[:, :3]) if coloured else colour[:, :3]
    return {
        "means": between(("x", "y", "z"), _bits(splats["packed_position"], 11, 10, 11)),
        "scales": between(("x", "y", "z"), _bits(splats["packed_scale"], 11, 10, 11), "scale_"),
        "quats": _rotations(splats["packed_rotation"]),
        "opacities": logit(colour[:, 3]),
        "sh0": ((rgb - 0.5) / SH0)[:, None],
        "shN": _harmonics(path, data, elements),
    }


def _bits(words: np.ndarray, *widths: int) -> np.ndarray:
    """Return fields of 32-bit words, the highest first, each as a fraction of its greatest value."""
    shifts = 32 - np.cumsum(widths)
    return np.stack([((words >> s) & ((1 << w) - 1)) / ((1 << w) - 1) for s, w in zip(shifts, widths, strict=True)], axis=1)


def _rotations(words: np.ndarray) -> np.ndarray:
    """Return quaternions (w, x, y, z): the two high bits say which component is left out, it is the positive, largest one."""
    others = (_bits(words << 2, 10, 10, 10) - 0.5) * np.sqrt(2)
    quats = np.empty((len(words), 4))
    largest = (words >> 30).astype(np.int64)
    rest = np.arange(4)[None] != largest[:, None]
    quats[rest] = others.ravel()
    quats[~rest] = np.sqrt(np.maximum(0, 1 - (others**2).sum(axis=1)))
    return quats


def _harmonics(path: Path, data: bytes, elements: dict[str, Element]) -> np.ndarray:
    n = elements["vertex"].count
    if "sh" not in elements:
        return np.zeros((n, 0, 3))
    table = elements["sh"]
    n_rest = len(table.names) // 3
    if degree_of(n_rest) < 1 or set(table.names) != {f"f_rest_{i}" for i in range(3 * n_rest)} or table.count != n:
        raise InputError(f"{path}: expected 9, 24 or 45 properties f_rest_* of {n} splats in the table sh of a compressed .ply.")
    rows = table.rows(path, data)
    codes = np.stack([rows[f"f_rest_{i}"] for i in range(3 * n_rest)], axis=1)
    unit = np.where(codes == 0, 0.0, np.where(codes == 255, 1.0, (codes + 0.5) / 256))
    return ((unit - 0.5) * 8).reshape(n, 3, n_rest).transpose(0, 2, 1)
