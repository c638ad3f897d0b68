"""Gaussians out of a .glb: chunks, accessors, and the nodes that place its primitives. Every size is checked before it is used."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsw.errors import InputError
from nsw.formats.checks import Z_SIGNS, built, half_turn, log_scales, logit, read_file
from nsw.models.gaussians import NAMES, Gaussians
from nsw.models.placing import placed

EXTENSION = "KHR_gaussian_splatting"
PREFIX = f"{EXTENSION}:"
_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
_SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def load_glb(path: Path | str) -> Gaussians:
    """Return the Gaussians of all primitives of a .glb that carry KHR_gaussian_splatting, turned to right, down, front.

    Raises:
        InputError: when the file is missing, cut off, damaged, holds no such primitive, or needs an extension that is not read.
    """
    path = Path(path)
    document, binary = _chunks(path, read_file(path))
    try:
        unknown = [name for name in document.get("extensionsRequired", []) if name != EXTENSION]
        if unknown:
            raise InputError(f"{path} needs the glTF extension {', '.join(map(str, unknown))}, which is not read here.")
        parts = [_placed_part(path, document, binary, *found) for found in _primitives(document)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: its glTF document does not hold together ({type(error).__name__}: {error})."
        ) from error
    if not parts:
        raise InputError(f"{path} holds no Gaussians: none of its primitives carries {EXTENSION}.")
    return half_turn(_joined(path, parts), Z_SIGNS)


def _chunks(path: Path, data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON document and the binary chunk."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise InputError(f"{path} is not a .glb file, or it is cut off: expected a header of 20 bytes that begins with glTF.")
    version, length, size, kind = struct.unpack_from("<IIII", data, 4)
    if version != 2 or kind != 0x4E4F534A:
        raise InputError(f"{path} is a .glb file of version {version}: version 2 with a JSON chunk first is read here.")
    if length > len(data) or 20 + size > length:
        raise InputError(f"{path} is cut off: its header promises {length} bytes, {len(data)} are there; copy the file again.")
    try:
        document = json.loads(data[20 : 20 + size].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its JSON chunk cannot be read ({error}).") from error
    begin = 20 + size
    if not isinstance(document, dict) or begin + 8 > length:
        raise InputError(f"{path} is damaged: expected a glTF object and a binary chunk.")
    size, kind = struct.unpack_from("<II", data, begin)
    if kind != 0x004E4942 or begin + 8 + size > length:
        raise InputError(f"{path} is cut off or damaged: its binary chunk is not whole; copy the file again.")
    return document, data[begin + 8 : begin + 8 + size]


def _primitives(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield every primitive of Gaussians in the scene with the matrix that places it."""
    nodes, meshes = document.get("nodes", []), document.get("meshes", [])
    roots = document["scenes"][document.get("scene", 0)].get("nodes", []) if document.get("scenes") else range(len(nodes))
    waiting = [(index, np.eye(4)) for index in roots]
    seen: set[int] = set()
    while waiting:
        index, above = waiting.pop(0)
        if index in seen:  # a node has one parent: anything else would go in circles
            raise ValueError(f"node {index} hangs in two places")
        seen.add(index)
        node = nodes[index]
        matrix = above @ _matrix(node)
        waiting += [(child, matrix) for child in node.get("children", [])]
        for primitive in meshes[node["mesh"]]["primitives"] if "mesh" in node else []:
            if EXTENSION in primitive.get("extensions", {}):
                yield primitive, matrix


def _matrix(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    turn = Rotation.from_quat(node.get("rotation", [0, 0, 0, 1])).as_matrix()
    matrix[:3, :3] = turn * np.array(node.get("scale", [1, 1, 1]), np.float64).reshape(1, 3)
    matrix[:3, 3] = np.array(node.get("translation", [0, 0, 0]), np.float64).reshape(3)
    return matrix


def _placed_part(path: Path, document: dict, binary: bytes, primitive: dict, matrix: np.ndarray) -> Gaussians:
    about = primitive["extensions"][EXTENSION]
    if about.get("extensions"):
        raise InputError(f"{path} packs its Gaussians with {', '.join(about['extensions'])}, which is not read here.")
    if about.get("colorSpace") != "srgb_rec709_display":
        raise InputError(f'{path} has the colour space {about.get("colorSpace")}: only "srgb_rec709_display" is read here.')
    attributes = primitive["attributes"]

    def read(name: str, width: int) -> np.ndarray:
        return _accessor(path, document, binary, attributes[name], width)

    degrees = [d for d in range(1, 4) if f"{PREFIX}SH_DEGREE_{d}_COEF_0" in attributes]
    rest = [read(f"{PREFIX}SH_DEGREE_{d}_COEF_{i}", 3) for d in range(1, max(degrees, default=0) + 1) for i in range(2 * d + 1)]
    means, scales = read("POSITION", 3), read(f"{PREFIX}SCALE", 3)
    # The ratified extension stores lengths; drafts until the spring of 2026 stored logarithms, which small splats give away.
    logarithms = bool((scales < 0).any())
    raw = {
        "means": means,
        "scales": scales if logarithms else log_scales(scales),
        "quats": read(f"{PREFIX}ROTATION", 4)[:, [3, 0, 1, 2]],
        "opacities": logit(read(f"{PREFIX}OPACITY", 1)[:, 0]),
        "sh0": read(f"{PREFIX}SH_DEGREE_0_COEF_0", 3)[:, None],
        "shN": np.stack(rest, axis=1) if rest else np.zeros((len(means), 0, 3)),
    }
    if len({len(values) for values in raw.values()}) > 1:
        raise InputError(f"{path} is damaged: the attributes of its Gaussians differ in length.")
    part = built(path, raw)
    scale = math.cbrt(np.linalg.det(matrix[:3, :3]))
    if np.allclose(matrix, np.eye(4)):
        return part
    return placed(part, torch.from_numpy(matrix[:3, :3] / scale), torch.from_numpy(matrix[:3, 3].copy()), scale)


def _accessor(path: Path, document: dict, binary: bytes, index: int, width: int) -> np.ndarray:
    """Return an accessor's values in float32 [count, width]; integers marked as normalized become fractions."""
    about = document["accessors"][index]
    view = document["bufferViews"][about["bufferView"]]
    if "sparse" in about or view.get("buffer", 0) != 0 or "uri" in document["buffers"][0]:
        raise InputError(f"{path} keeps its Gaussians in sparse accessors or outside of the file, which is not read here.")
    dtype, count = np.dtype(_COMPONENTS[about["componentType"]]), int(about["count"])
    if _SIZES[about["type"]] != width or count < 1:
        raise InputError(
            f"{path} is damaged or empty: accessor {index} is {count} x {about['type']}, expected {width} numbers each."
        )
    row = width * dtype.itemsize
    stride = int(view.get("byteStride", row))
    offset = int(view.get("byteOffset", 0)) + int(about.get("byteOffset", 0))
    if stride < row or offset < 0 or offset + stride * (count - 1) + row > len(binary):
        raise InputError(f"{path} is cut off or damaged: accessor {index} reaches beyond the binary chunk; copy the file again.")
    values = np.ndarray((count, width), dtype, binary, offset, (stride, dtype.itemsize))
    if about.get("normalized") and dtype.kind != "f":
        return np.maximum(values.astype(np.float32) / np.iinfo(dtype).max, -1)
    return values.astype(np.float32)


def _joined(path: Path, parts: list[Gaussians]) -> Gaussians:
    """Return all parts as one model; where degrees differ, the missing harmonics are 0."""
    if len(parts) == 1:
        return parts[0]
    most = max(part.n_sh for part in parts) - 1
    raw = {name: torch.cat([part.params[name].detach() for part in parts]) for name in NAMES if name != "shN"}
    rest = [part.params["shN"].detach() for part in parts]
    raw["shN"] = torch.cat([torch.nn.functional.pad(values, (0, 0, 0, most - values.shape[1])) for values in rest])
    return built(path, {name: value.numpy() for name, value in raw.items()})
