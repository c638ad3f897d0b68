"""Gaussians as .splat (antimatter15): 32 bytes a splat and nothing else, one colour from all sides.

float32 centre [3] and scales [3], then red, green, blue, opacity and the quaternion (w, x, y, z) in 8 bits; a component q of
the unit quaternion is stored as 128 q + 128. See github.com/antimatter15/splat.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nsw.errors import InputError
from nsw.formats.checks import built, log_scales, logit, raw_values, read_file, y_down
from nsw.models.gaussians import Gaussians
from nsw.models.sh import SH0
from nsw.models.state import write_bytes

RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def load_splat(path: Path | str) -> Gaussians:
    """Return the Gaussians of a .splat, of degree 0.

    Raises:
        InputError: when the file is missing, empty, no multiple of 32 bytes, or its scales are no lengths.
    """
    path = Path(path)
    data = read_file(path)
    if not data or len(data) % RECORD.itemsize:
        raise InputError(f"{path} is cut off or no .splat file: it has {len(data)} bytes, expected a multiple of 32 above 0.")
    table = np.frombuffer(data, RECORD)
    scales = table["scale"]
    if not bool((scales >= 0).all()):
        first = int(np.argwhere(~(scales >= 0).all(axis=1))[0, 0])
        raise InputError(f"{path}: a scale of splat {first} is no length; it is damaged or no .splat file.")
    raw = {
        "means": table["mean"],
        "scales": log_scales(scales),
        "quats": (table["quat"].astype(np.float32) - 128) / 128,
        "opacities": logit(table["rgba"][:, 3] / 255),
        "sh0": ((table["rgba"][:, None, :3] / 255) - 0.5) / SH0,
        "shN": np.zeros((len(table), 0, 3)),
    }
    return built(path, raw)


def save_splat(gaussians: Gaussians, path: Path | str, up: str = "+z") -> Path:
    """Write Gaussians as .splat, the largest and most opaque first, so that a viewer shows something early.

    What depends on the direction is left out, colours are clamped to [0, 1].

    Args:
        up: the direction that is up in the Gaussians' world; the file's is -y.
    """
    path = Path(path)
    raw = raw_values(y_down(gaussians, up), path)
    opacity = 1 / (1 + np.exp(-raw["opacities"].astype(np.float64)))
    order = np.argsort(-raw["scales"].astype(np.float64).sum(axis=1) - np.log(opacity), kind="stable")
    table = np.empty(len(order), RECORD)
    table["mean"], table["scale"] = raw["means"][order], np.exp(raw["scales"][order])
    rgba = np.concatenate([0.5 + SH0 * raw["sh0"][:, 0], opacity[:, None]], axis=1)[order]
    table["rgba"] = np.rint(255 * rgba.clip(0, 1))
    table["quat"] = np.rint(128 * raw["quats"][order] + 128).clip(0, 255)
    write_bytes(path, table.tobytes())
    return path
