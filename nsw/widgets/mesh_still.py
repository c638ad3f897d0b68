"""Meshes of a plotly figure painted into a picture, for its still: back to front, matt, under one lamp."""

from __future__ import annotations

from typing import Any

import numpy as np

from nsw.renderers.heat_colours import coloured

SHARP = 2  # pixels of the painting per unit of the still


def painting(traces: list[tuple[dict, np.ndarray, np.ndarray]], width: float, height: float) -> np.ndarray:
    """Return the traces as a uint8 picture [H, W, 3] on white.

    Args:
        traces: (mesh3d trace, places of its vertices in the still [V, 2], their distances from the eye [V]).
        width, height: of the still.
    """
    from PIL import Image, ImageDraw

    polygons, depths, fills = [], [], []
    for trace, at, distance in traces:
        faces = np.stack([np.asarray(trace[k], dtype=np.int64) for k in "ijk"], axis=1)
        corners = np.concatenate([at, distance[:, None]], axis=1)[faces]
        polygons.append(corners[:, :, :2] * SHARP)
        depths.append(corners[:, :, 2].mean(1))
        fills.append(_colours(trace, faces) * _light(corners)[:, None])
    order = np.argsort(-np.concatenate(depths), kind="stable")
    corners, fill = np.concatenate(polygons)[order], np.concatenate(fills)[order].clip(0, 255).astype(np.uint8)
    image = Image.new("RGB", (round(width * SHARP), round(height * SHARP)), "white")
    draw = ImageDraw.Draw(image)
    for points, colour in zip(corners.reshape(-1, 6).tolist(), fill.tolist(), strict=True):
        draw.polygon(points, fill=tuple(colour))
    return np.asarray(image)


def _light(corners: np.ndarray) -> np.ndarray:
    """Return the brightness of each face from its normal in the still, the same for both sides."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    lamp = np.array([0.35, 0.55, 0.76])  # right, down and away in the still: the lamp is behind the reader's left shoulder
    return 0.4 + 0.6 * np.abs(normal @ lamp)


def _colours(trace: dict, faces: np.ndarray) -> np.ndarray:
    from nsw.widgets.svg_still import values

    if trace.get("intensity") is not None:
        numbers: Any = values(trace["intensity"])[faces].mean(1)
        low, high = trace.get("cmin", float(numbers.min())), trace.get("cmax", float(numbers.max()))
        return coloured(numbers[None], low, high)[0].astype(np.float64)
    grey = trace.get("color", "#c9c9c9").lstrip("#")
    return np.tile([float(int(grey[i : i + 2], 16)) for i in (0, 2, 4)], (len(faces), 1))
