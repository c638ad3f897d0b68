"""Triangle meshes to pictures: a z-buffer in plain torch, for meshes whose triangles are small in the picture."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras, project
from nsw.renderers.render import Render

LIGHT = (0.35, -0.45, 0.82)  # towards the lamp, world axes


def colours_of(normals: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """Return normals as colours, (n + 1) / 2, white where there is none.

    >>> colours_of(torch.tensor([[0.0, 0, 1], [0, 0, 0]])).tolist()
    [[0.5, 0.5, 1.0], [1.0, 1.0, 1.0]]
    """
    length = normals.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-3, 0.5 + 0.5 * normals / length.clamp_min(1e-3), 1.0)


def shaded(normals: Float[Tensor, "*n 3"], rgb: Float[Tensor, "*n 3"] | float = 0.8) -> Float[Tensor, "*n 3"]:
    """Return matt colours under one lamp, lit from both sides so that a hole's inside shows."""
    light = torch.nn.functional.normalize(normals.new_tensor(LIGHT), dim=0)
    return torch.as_tensor(rgb) * (0.35 + 0.65 * (normals @ light).abs())[..., None]


@torch.no_grad()
def render_view(mesh, cameras: Cameras, *, rgb: Float[Tensor, "F 3"] | float = 0.8, background: float = 1.0) -> Render:
    """Render a mesh from C cameras: every triangle is asked about every pixel of its box, the nearest one wins.

    Args:
        mesh: a trimesh.Trimesh.
        rgb: grey level, or colours of the faces.

    Returns:
        Render with depth; extras: "normals" [C, H, W, 3] of the faces, 0 where nothing is hit.
    """
    vertices = torch.as_tensor(mesh.vertices, dtype=torch.float32).reshape(-1, 3)
    faces = torch.as_tensor(mesh.faces).long().reshape(-1, 3)
    normals = torch.as_tensor(mesh.face_normals.copy()).float().reshape(-1, 3)
    colours = shaded(normals, rgb)
    n_pixels = cameras.height * cameras.width
    hits = [nearest_face(vertices, faces, cameras[i].to("cpu")) for i in range(len(cameras))]
    face, depth = (torch.stack(column) for column in zip(*hits, strict=True))
    hit, shape = face >= 0, (len(cameras), cameras.height, cameras.width)

    def spread(values: Tensor, nothing: float) -> Tensor:
        picture = values.new_full((len(cameras), n_pixels, 3), nothing)
        picture[hit] = values[face[hit]]
        return picture.view(*shape, 3)

    return Render(spread(colours, background), hit.float().view(shape), depth.view(shape), {"normals": spread(normals, 0.0)})


def nearest_face(vertices: Tensor, faces: Tensor, camera: Cameras) -> tuple[Tensor, Tensor]:
    """Return for every pixel centre of one camera the index of the face it sees, or -1, and its depth, or 0.

    Faces that reach behind the camera are left out.
    """
    height, width = camera.height, camera.width
    xy, z = (t[0] for t in project(camera, vertices))
    corners, depths = xy[faces], z[faces]
    low, high = corners.amin(1) - 0.5, corners.amax(1) - 0.5
    first = low.ceil().clamp_min(0).long()
    last = torch.minimum(high.floor(), high.new_tensor([width - 1, height - 1])).long()
    size = (last - first + 1).clamp_min(0)
    kept = (depths > 1e-6).all(1) & (size > 0).all(1)
    n = torch.where(kept, size.prod(1), 0)
    index = torch.repeat_interleave(torch.arange(len(faces)), n)
    place = torch.arange(len(index)) - torch.repeat_interleave(n.cumsum(0) - n, n)
    column = first[index, 0] + place % size[index, 0]
    row = first[index, 1] + place // size[index, 0]
    shares = _shares(corners[index], torch.stack([column, row], -1) + 0.5)
    inverse = (shares / depths[index]).sum(1)  # 1 / z is linear in the picture
    inside = (shares >= 0).all(1) & (inverse > 0)
    index, pixel, at = index[inside], (row * width + column)[inside], 1 / inverse[inside]
    depth = torch.full((height * width,), torch.inf).scatter_reduce(0, pixel, at, "amin")
    won = at == depth[pixel]
    face = torch.full((height * width,), -1).scatter_reduce(0, pixel[won], index[won], "amax")
    return face, torch.where(face >= 0, depth, 0.0)


def _shares(corners: Float[Tensor, "M 3 2"], pixels: Float[Tensor, "M 2"]) -> Float[Tensor, "M 3"]:
    """Return barycentric coordinates; triangles without area give -1."""
    a, b, c = corners.unbind(1)

    def twice_area(p, q, r):
        return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])

    whole = twice_area(a, b, c)
    parts = torch.stack([twice_area(pixels, b, c), twice_area(a, pixels, c), twice_area(a, b, pixels)], dim=-1)
    flat = whole.abs() < 1e-12
    return torch.where(flat[:, None], -1.0, parts / torch.where(flat, 1.0, whole)[:, None])
