"""Gaussians as .glb: glTF 2.0 with the extension KHR_gaussian_splatting (ellipse kernel, display-referred sRGB).

A primitive of points: POSITION; SCALE, standard deviations; ROTATION, unit quaternions (x, y, z, w); OPACITY in [0, 1]; one
attribute a harmonic, SH_DEGREE_l_COEF_n; COLOR_0, which viewers that do not know the extension draw as coloured points. The
file's axes are glTF's: x left, y up, z front. See extensions/2.0/Khronos/KHR_gaussian_splatting in github.com/KhronosGroup/glTF.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

import nsw
from nsw.formats.checks import Z_SIGNS, degree_of, half_turn, raw_values, y_down
from nsw.formats.glb_reading import EXTENSION, PREFIX, load_glb
from nsw.models.gaussians import Gaussians
from nsw.models.sh import SH0
from nsw.models.state import write_bytes

__all__ = ["load_glb", "save_glb"]

_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_FLOAT, _UBYTE, _VERTICES = 5126, 5121, 34962  # numbers of the glTF specification


def save_glb(gaussians: Gaussians, path: Path | str, up: str = "+z") -> Path:
    """Write Gaussians as .glb in float32; scales and opacity are activated, as the extension has them.

    Args:
        up: the direction that is up in the Gaussians' world; the file's is +y.
    """
    path = Path(path)
    raw = raw_values(half_turn(y_down(gaussians, up), Z_SIGNS), path)
    columns = _attributes(raw)
    views, accessors, blocks, begin = [], [], [], 0
    for name, values in columns.items():
        block = values.tobytes()
        views.append({"buffer": 0, "byteOffset": begin, "byteLength": len(block), "target": _VERTICES})
        kind = _TYPES[1 if values.ndim == 1 else values.shape[1]]
        about = {"bufferView": len(accessors), "componentType": _FLOAT, "count": len(values), "type": kind}
        if name == "POSITION":
            about |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        if values.dtype == np.uint8:
            about |= {"componentType": _UBYTE, "normalized": True}
        accessors.append(about)
        blocks.append(block)
        begin += len(block)
    splats = {
        "kernel": "ellipse",
        "colorSpace": "srgb_rec709_display",
        "sortingMethod": "cameraDistance",
        "projection": "perspective",
    }
    points = {"attributes": {name: i for i, name in enumerate(columns)}, "mode": 0, "extensions": {EXTENSION: splats}}
    document = {
        "asset": {"version": "2.0", "generator": f"NSW {nsw.__version__}"},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [points]}],
        "buffers": [{"byteLength": begin}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 28 + len(text) + begin, len(text), 0x4E4F534A)
    write_bytes(path, b"".join([head, text, struct.pack("<II", begin, 0x004E4942), *blocks]))
    return path


def _attributes(raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns by attribute; every one takes a multiple of 4 bytes a splat, as alignment asks for."""
    opacity = (1 / (1 + np.exp(-raw["opacities"].astype(np.float64)))).astype("<f4")
    rgba = np.concatenate([0.5 + SH0 * raw["sh0"][:, 0], opacity[:, None]], axis=1)
    columns = {
        "POSITION": raw["means"],
        "COLOR_0": np.rint(255 * rgba.clip(0, 1)).astype("u1"),
        f"{PREFIX}ROTATION": raw["quats"][:, [1, 2, 3, 0]],
        f"{PREFIX}SCALE": np.exp(raw["scales"]),
        f"{PREFIX}OPACITY": opacity,
        f"{PREFIX}SH_DEGREE_0_COEF_0": raw["sh0"][:, 0],
    }
    for degree in range(1, degree_of(raw["shN"].shape[1]) + 1):
        for i in range(2 * degree + 1):
            columns[f"{PREFIX}SH_DEGREE_{degree}_COEF_{i}"] = raw["shN"][:, degree**2 - 1 + i]
    return {name: np.ascontiguousarray(values, values.dtype.newbyteorder("<")) for name, values in columns.items()}
