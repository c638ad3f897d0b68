"""Triangle meshes of toys, furniture and houses, with texture coordinates, made from formulas.

Every function returns a `Mesh` about the origin with +z up; `placed` moves it. Nothing here needs Mitsuba.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Mesh:
    """Vertices [V, 3], unit vertex normals [V, 3], texture coordinates [V, 2] and triangles [F, 3]."""

    vertices: Array
    normals: Array
    uvs: Array
    faces: Array


def joined(meshes: Sequence[Mesh]) -> Mesh:
    """Return several meshes as one."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uvs for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
    )


def area(mesh: Mesh) -> float:
    """Return the area of all triangles.

    >>> round(area(block((1, 2, 3), 1e-6)), 3)
    22.0
    """
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def rotation(axis: str, degrees: float) -> Array:
    """Return the rotation matrix [3, 3] about "x", "y" or "z", anticlockwise seen against the axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    out = np.eye(3)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


def placed(
    mesh: Mesh, at: Sequence[float] = (0, 0, 0), turn: float = 0.0, tilt: float = 0.0, scale: float | Sequence[float] = 1.0
) -> Mesh:
    """Return the mesh scaled, tilted about x, turned about z and then moved to `at`; angles in degrees."""
    R = rotation("z", turn) @ rotation("x", tilt)
    scale = np.broadcast_to(np.asarray(scale, float), 3)
    normals = (mesh.normals / scale) @ R.T
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Mesh((mesh.vertices * scale) @ R.T + np.asarray(at, float), normals, mesh.uvs, mesh.faces)


def surface(f: Callable[[Array, Array], Array], nu: int, nv: int, uv_repeat: tuple[float, float] = (1.0, 1.0)) -> Mesh:
    """Return the surface f(u, v) -> [..., 3] over the unit square; its normals are df/du x df/dv by central differences."""
    u, v = np.meshgrid(np.linspace(0, 1, nu + 1), np.linspace(0, 1, nv + 1), indexing="ij")
    # One-sided steps near the border keep poles (where a derivative vanishes) out of the differences.
    e = 1e-3
    uc, vc = np.clip(u, e, 1 - e), np.clip(v, e, 1 - e)
    normals = np.cross(f(uc + e, vc) - f(uc - e, vc), f(uc, vc + e) - f(uc, vc - e))
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    index = np.arange((nu + 1) * (nv + 1)).reshape(nu + 1, nv + 1)
    a, b, c, d = (x.ravel() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    points = f(u, v)
    corners = points.reshape(-1, 3)[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    uvs = np.stack([u * uv_repeat[0], v * uv_repeat[1]], -1).reshape(-1, 2)
    return Mesh(points.reshape(-1, 3), normals.reshape(-1, 3), uvs, faces[areas > 1e-12])


def ball(radii: float | Sequence[float] = 1.0, n: int = 48) -> Mesh:
    """Return an ellipsoid; u runs around +z, v from the south pole to the north pole."""
    radii = np.broadcast_to(np.asarray(radii, float), 3)

    def f(u: Array, v: Array) -> Array:
        a, b = 2 * np.pi * u, np.pi * (v - 0.5)
        return np.stack([np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)], -1) * radii

    return surface(f, n, n // 2)


def ring(radius: float, thickness: float, n: int = 64) -> Mesh:
    """Return a torus around +z: centre line of `radius`, tube of `thickness` (a radius too)."""

    def f(u: Array, v: Array) -> Array:
        a, b = 2 * np.pi * u, 2 * np.pi * v
        r = radius + thickness * np.cos(b)
        return np.stack([r * np.cos(a), r * np.sin(a), thickness * np.sin(b)], -1)

    return surface(f, n, max(n // 3, 12))


def turned(profile: Sequence[Sequence[float]], n: int = 64, smooth: bool = False) -> Mesh:
    """Return the surface of revolution around +z of a profile of (radius, z) points, listed upwards on the outside.

    A profile that is not smooth keeps its edges: each of its segments becomes a band of its own.
    """
    profile = np.asarray(profile, float)
    pieces = [profile] if smooth else [profile[i : i + 2] for i in range(len(profile) - 1)]
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(profile, axis=0), axis=1))])
    out = []
    for i, piece in enumerate(pieces):
        at = (length if smooth else length[i : i + 2]) / length[-1]

        def f(u: Array, v: Array, piece: Array = piece, at: Array = at) -> Array:
            s = at[0] + v * (at[-1] - at[0])
            r, z = np.interp(s, at, piece[:, 0]), np.interp(s, at, piece[:, 1])
            return np.stack([r * np.cos(2 * np.pi * u), r * np.sin(2 * np.pi * u), z], -1)

        band = surface(f, n, (len(profile) - 1) * 3 if smooth else 1)
        uvs = band.uvs * [1, at[-1] - at[0]] + [0, at[0]]
        out.append(Mesh(band.vertices, band.normals, uvs, band.faces))
    return joined(out)


def disc(radius: float, n: int = 64) -> Mesh:
    """Return a flat disc at z = 0 that faces +z and takes its texture from above, [-radius, radius]^2 -> [0, 1]^2."""
    a = np.linspace(0, 2 * np.pi, n, endpoint=False)
    rim = np.stack([np.cos(a), np.sin(a), 0 * a], -1)
    vertices = np.concatenate([[[0.0, 0, 0]], rim])
    faces = np.stack([np.zeros(n, int), 1 + np.arange(n), 1 + (np.arange(n) + 1) % n], 1)
    return Mesh(vertices * radius, np.tile([0.0, 0, 1], (n + 1, 1)), vertices[:, :2] / 2 + 0.5, faces)


def rod(start: Sequence[float], end: Sequence[float], radius: float, n: int = 16) -> Mesh:
    """Return a straight round rod with closed ends."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    return tube(np.linspace(start, end, 2), radius, n)


def tube(path: Sequence[Sequence[float]], radius: float, n: int = 12) -> Mesh:
    """Return a round tube along a polyline [P, 3], with balls for its ends."""
    path = np.asarray(path, float)
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.cross(along[0], [0.0, 0, 1] if abs(along[0, 2]) < 0.9 else [1.0, 0, 0])
    sides = []
    for direction in along:  # carry the side vector along the path, so that the tube does not twist
        side = side - direction * (side @ direction)
        side = side / np.linalg.norm(side)
        sides.append(side)
    sides, up = np.array(sides), np.cross(along, np.array(sides))
    angle = 2 * np.pi * np.arange(n + 1) / n
    normals = sides[:, None] * np.cos(angle)[:, None] + up[:, None] * np.sin(angle)[:, None]
    vertices = path[:, None] + radius * normals
    index = np.arange(len(path) * (n + 1)).reshape(len(path), n + 1)
    a, b, c, d = (x.ravel() for x in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    uvs = np.stack(np.broadcast_arrays(angle / (2 * np.pi), np.linspace(0, 1, len(path))[:, None]), -1)
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    body = Mesh(vertices.reshape(-1, 3), normals.reshape(-1, 3), uvs.reshape(-1, 2), faces)
    return joined([body, *(placed(ball(radius, 12), end) for end in (path[0], path[-1]))])


def block(size: Sequence[float], round: float = 0.02, steps: int = 4, uv_scale: float | None = None) -> Mesh:
    """Return a box of the given full size with rounded edges; each face has the whole texture, or `uv_scale` repeats a unit."""
    half = np.asarray(size, float) / 2
    round = min(round, 0.999 * half.min())
    out = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            i, j = ((axis + 1) % 3, (axis + 2) % 3) if sign > 0 else ((axis + 2) % 3, (axis + 1) % 3)
            edges = [
                np.concatenate([np.linspace(-h, round - h, steps), np.linspace(h - round, h, steps)]) for h in (half[i], half[j])
            ]
            p, q = np.meshgrid(*edges, indexing="ij")
            outer = np.zeros((*p.shape, 3))
            outer[..., axis], outer[..., i], outer[..., j] = sign * half[axis], p, q
            inner = np.clip(outer, -(half - round), half - round)
            normals = outer - inner
            normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
            # Upright textures on the four walls: v follows z wherever a face has it.
            across, along = (p, q) if j == 2 or (i != 2 and sign > 0) else (q, p)
            ha, hb = (half[i], half[j]) if across is p else (half[j], half[i])
            flip = -1.0 if across is q and 2 in (i, j) else 1.0
            uv = np.stack([0.5 + flip * across / (2 * ha), 0.5 + along / (2 * hb)], -1)
            if uv_scale is not None:
                uv = uv * np.array([2 * ha, 2 * hb]) * uv_scale
            index = np.arange(p.size).reshape(p.shape)
            a, b, c, d = (x.ravel() for x in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
            faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
            out.append(Mesh((inner + round * normals).reshape(-1, 3), normals.reshape(-1, 3), uv.reshape(-1, 2), faces))
    return joined(out)


def panel(origin: Sequence[float], side_u: Sequence[float], side_v: Sequence[float], repeat: tuple[float, float] = (1, 1)) -> Mesh:
    """Return a flat parallelogram that faces side_u x side_v, its texture repeated along both sides."""
    origin, side_u, side_v = (np.asarray(x, float) for x in (origin, side_u, side_v))
    return surface(lambda u, v: origin + u[..., None] * side_u + v[..., None] * side_v, 1, 1, repeat)


def extruded(outline: Sequence[Sequence[float]], depth: float) -> Mesh:
    """Return a prism: a convex outline of (x, z) points, anticlockwise seen from -y, extruded along y around y = 0."""
    outline = np.asarray(outline, float)
    n = len(outline)
    front = np.stack([outline[:, 0], np.full(n, -depth / 2), outline[:, 1]], -1)
    back = front + [0, depth, 0]
    low, span = outline.min(0), np.ptp(outline, axis=0).max()
    uvs = (outline - low) / span
    fan = np.stack([np.zeros(n - 2, int), np.arange(1, n - 1), np.arange(2, n)], 1)
    caps = [
        Mesh(front, np.tile([0.0, -1, 0], (n, 1)), uvs, fan),
        Mesh(back, np.tile([0.0, 1, 0], (n, 1)), uvs, fan[:, ::-1]),
    ]
    inward = joined([panel(front[i], front[(i + 1) % n] - front[i], [0, depth, 0]) for i in range(n)])
    return joined([*caps, Mesh(inward.vertices, -inward.normals, inward.uvs, inward.faces[:, ::-1])])


def write_ply(mesh: Mesh, path: Path) -> None:
    """Write a mesh as a binary PLY file that Mitsuba reads with its normals and texture coordinates."""
    columns = ("x", "y", "z", "nx", "ny", "nz", "u", "v")
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(mesh.vertices)}",
        *(f"property float {c}" for c in columns),
        f"element face {len(mesh.faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    vertices = np.concatenate([mesh.vertices, mesh.normals, mesh.uvs], 1).astype("<f4")
    faces = np.empty(len(mesh.faces), dtype=[("n", "u1"), ("i", "<i4", 3)])
    faces["n"], faces["i"] = 3, mesh.faces
    path.write_bytes("\n".join(header).encode() + b"\n" + vertices.tobytes() + faces.tobytes())
