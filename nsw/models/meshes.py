"""Triangle meshes from values on a grid: marching cubes over a distance field, and the removal of crumbs.

A mesh is a `trimesh.Trimesh`: vertices in world units, faces anticlockwise seen from outside. Methods that learn a distance field
call `level_set`, methods that render depth call `nsw.renderers.tsdf.fuse` first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.errors import InputError
from nsw.models.neighbours import nearest


def grid_points(
    aabb: Float[Tensor, "2 3"], spacing: float, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "X Y Z 3"], Float[Tensor, "3"]]:
    """Return points of a grid that covers a box, about `spacing` apart, and their exact distances along x, y, z.

    >>> points, steps = grid_points(torch.tensor([[0.0, 0, 0], [1, 1, 2]]), 0.5)
    >>> tuple(points.shape), steps.tolist()
    ((3, 3, 5, 3), [0.5, 0.5, 0.5])
    """
    low, high = aabb.float().cpu()
    if not spacing > 0 or not bool((high > low).all()):
        raise InputError(f"A grid needs a spacing above 0 and a box with volume, got {spacing} and {aabb.tolist()}.")
    counts = [max(2, round(float(length) / spacing) + 1) for length in high - low]
    axes = [torch.linspace(float(low[k]), float(high[k]), counts[k]) for k in range(3)]
    steps = (high - low) / (torch.tensor(counts) - 1)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(device), steps


def level_set(
    values: Float[Tensor, "X Y Z"],
    aabb: Float[Tensor, "2 3"],
    level: float = 0.0,
    known: Bool[Tensor, "X Y Z"] | None = None,
):
    """Return the surface values = level by marching cubes (Lewiner 2003), faces towards larger values.

    Args:
        values: at the points of `grid_points`, for example signed distances, positive outside.
        aabb: the box that the grid covers.
        known: cubes with a corner that is False are left out, which leaves a hole with an open border.

    Returns:
        trimesh.Trimesh; empty where the level is not reached.
    """
    import trimesh
    from skimage.measure import marching_cubes

    field = values.detach().float().cpu().numpy()
    mask = None
    if known is not None:  # skimage asks for the cube whose corners are i - 1 and i at index i
        whole = known.cpu().numpy()
        mask = np.zeros_like(whole)
        mask[1:, 1:, 1:] = np.lib.stride_tricks.sliding_window_view(whole, (2, 2, 2)).all(axis=(3, 4, 5))
        field = np.where(whole, field, level + 1.0).astype(np.float32)
    if not field.min() < level < field.max() or (mask is not None and not mask.any()):
        return trimesh.Trimesh()
    low, high = aabb.float().cpu().numpy()
    spacing = tuple((high - low) / (np.array(field.shape) - 1))
    vertices, faces, _, _ = marching_cubes(
        field, level, spacing=spacing, mask=mask, gradient_direction="descent", allow_degenerate=False
    )
    return trimesh.Trimesh(vertices + low, faces, process=False)


def field_mesh(value: Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N"]], aabb: Float[Tensor, "2 3"], spacing: float, level=0.0):
    """Return the level set of a function of position, asked at the points of a grid in slices.

    >>> ball = field_mesh(lambda x: x.norm(dim=-1) - 0.5, torch.tensor([[-1.0] * 3, [1.0] * 3]), 0.1)
    >>> round(float(ball.area), 1)  # of a sphere of radius 0.5: 3.1
    3.1
    """
    points, _ = grid_points(aabb, spacing, aabb.device)
    with torch.no_grad():
        values = torch.stack([value(layer.reshape(-1, 3)).reshape(layer.shape[:2]) for layer in points])
    return level_set(values, aabb, level)


def without_crumbs(mesh, keep: int = 50, least_faces: int = 50):
    """Return the mesh with only its largest connected pieces: at most `keep`, each of at least `least_faces` triangles."""
    import trimesh

    if len(mesh.faces) == 0:
        return mesh
    labels = trimesh.graph.connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    sizes = np.bincount(labels)
    chosen = np.argsort(-sizes, kind="stable")[:keep]
    chosen = chosen[sizes[chosen] >= least_faces]
    rest = mesh.copy()
    rest.update_faces(np.isin(labels, chosen))
    rest.remove_unreferenced_vertices()
    return rest


def painted(mesh, points: Float[Tensor, "N 3"], rgb: Float[Tensor, "N 3"]):
    """Return the mesh with every vertex in the colour of the coloured point nearest to it, for example a splat's."""
    _, ids = nearest(torch.as_tensor(mesh.vertices), points, 1)
    colours = (rgb.detach().cpu().clamp(0, 1) * 255).round().byte().numpy()
    picture = mesh.copy()
    picture.visual.vertex_colors = colours[ids[:, 0].numpy()]
    return picture


def discs(
    means: Float[Tensor, "N 3"],
    rotations: Float[Tensor, "N 3 3"],
    scales: Float[Tensor, "N 3"],
    radius: float = 1.0,
    sides: int = 10,
):
    """Return flat polygons, one for each disc: centre, axes in the columns of its rotation, standard deviations times `radius`.

    Faces of disc i are those from i * sides on.
    """
    import trimesh

    angle = torch.arange(sides, device=means.device) * (2 * np.pi / sides)
    u, v = (rotations[:, None, :, k] * (radius * scales[:, k])[:, None, None] for k in (0, 1))
    rim = means[:, None] + angle.cos()[:, None] * u + angle.sin()[:, None] * v
    corners = torch.cat([means[:, None], rim], dim=1).reshape(-1, 3).detach().cpu().numpy()
    k = np.arange(sides)
    fan = np.stack([np.zeros_like(k), 1 + k, 1 + (k + 1) % sides], axis=1)
    faces = (np.arange(len(means))[:, None, None] * (sides + 1) + fan).reshape(-1, 3)
    return trimesh.Trimesh(corners, faces, process=False)
