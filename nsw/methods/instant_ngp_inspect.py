"""Looking at Instant-NGP: single levels, vertices that share an entry, who pulls at it, the occupancy grid."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool3d

from nsw.cameras import Cameras
from nsw.kernels.hash_encoding import hash_levels, hash_rows
from nsw.losses import loss_mse
from nsw.methods import instant_ngp as ngp
from nsw.methods.instant_ngp_fit import Plan, fit, new_model
from nsw.methods.instant_ngp_pull import Pull, pull_of
from nsw.models.hash_grid import HashGrid
from nsw.renderers.parts import rays_of_some
from nsw.renderers.volume import march_cells
from nsw.scenes.scene import Scene


def up_to_level(model: HashGrid, n_levels: int) -> HashGrid:
    """Return a copy of a field whose levels from `n_levels` on say zero."""
    copied = copy.deepcopy(model)
    copied.gradients_in_place = False
    with torch.no_grad():
        copied.table[copied.levels.first_rows[n_levels] :] = 0.0
    return copied


def vertex_positions(model: HashGrid, level: int, vertices: Int[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Return where vertices lie in the world: position = (vertex - 1/2) / scale of the way through the box."""
    unit = (vertices.to(model.aabb) - 0.5) / model.levels.scales[level]
    return model.aabb[0] + unit * (model.aabb[1] - model.aabb[0])


def surface_share(model: HashGrid, pull: Pull, surface: Bool[Tensor, "n n n"]) -> tuple[float, float]:
    """Return the share of the gradient, and of the pulled vertices, that lie in a surface's cells or the cells next to them."""
    near = max_pool3d(surface[None, None].float().cpu(), 3, stride=1, padding=1)[0, 0] > 0
    n, aabb = len(surface), model.aabb.cpu()
    unit = (vertex_positions(model, pull.level, pull.vertices).cpu() - aabb[0]) / (aabb[1] - aabb[0])
    i, j, k = (unit * n).long().clamp(0, n - 1).unbind(-1)
    beside = near[i, j, k]
    return float(pull.mass[beside].sum() / pull.mass.sum()), float(beside.float().mean())


def pull_on(model: HashGrid, pixels: ngp.Pixels, level: int, near: float, n_rays: int = 2048, seed: int = 0) -> Pull:
    """Return how strongly the vertices of a level are pulled by random training pixels in front of random backgrounds."""
    generator = torch.Generator(model.aabb.device).manual_seed(seed)
    field = up_to_level(model, len(model.levels))
    encode, seen = field.encode, []

    def keep(points: Tensor, known: Tensor | None = None) -> Tensor:
        features = encode(points, known)
        if features.requires_grad:
            features.retain_grad()
            seen.append(features)
        return features

    field.encode = keep
    with torch.enable_grad():
        batch = pixels.draw(n_rays, generator)
        behind = ngp.random_backgrounds(batch, generator)
        out = ngp.render(field, batch.rays, near, behind)
        loss_mse(out.rgb, batch.over(behind)).backward()
    n_features = model.settings.n_features
    length = seen[-1].grad[:, level * n_features : (level + 1) * n_features].norm(dim=-1)
    rays = batch.rays[out.ray_indices]
    unit = (rays.origins + out.t[:, None] * rays.directions - model.aabb[0]) / (model.aabb[1] - model.aabb[0])
    return pull_of(model.levels, level, unit.clamp(0, 1), length)


def pull_columns(model: HashGrid, pull: Pull, surface: Bool[Tensor, "n n n"] | None) -> dict[str, str]:
    """Return a table's columns on a pull: collisions, the strongest vertex's share, the surface's share where it is known."""
    row = {"in collision": f"{pull.colliding:.0%}", "gradient of the strongest": f"{pull.strongest:.0%}"}
    if surface is None:
        return row
    gradient, vertices = surface_share(model, pull, surface)
    return row | {"gradient at surfaces": f"{gradient:.0%}", "vertices at surfaces": f"{vertices:.0%}"}


def table_of_levels(model: HashGrid, pulls: list[Pull], surface: Bool[Tensor, "n n n"] | None) -> list[dict[str, object]]:
    """Return one row a level: vertices, entries, measured collisions, the strongest vertex's share, the surface's share.

    Args:
        pulls: of `pull_on`, one a level.
        surface: cells that truly hold a surface, from `true_cells`; None where that is not known.
    """
    rows = []
    for pull in pulls:
        first, end = model.levels.first_rows[pull.level : pull.level + 2]
        row = {"level": pull.level, "vertices": model.levels.n_vertices[pull.level] ** 3, "entries": end - first}
        rows.append(row | pull_columns(model, pull, surface))
    return rows


def retrained(scene: Scene, pixels: ngp.Pixels, plan: Plan, seed: int = 0, steps_across: int = 128, **sizes: int) -> HashGrid:
    """Return a hash grid of these sizes, trained from the start."""
    device = pixels.alpha.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(scene, steps_across, **sizes).to(device)
        fit(model, pixels, plan, torch.Generator(device).manual_seed(seed), scene.near)
    return model


def without_skipping(model: HashGrid) -> HashGrid:
    """Return a copy of a field that takes every cell for possibly occupied."""
    copied = up_to_level(model, len(model.levels))
    copied.occupancy.binaries.fill_(True)
    return copied


@torch.no_grad()
def samples_a_ray(model: HashGrid, cameras: Cameras, near: float, skip: bool = True, chunk: int = 1 << 14) -> float:
    """Return the mean number of samples whose density a ray of these pictures asks for, with or without skipping."""
    field = model if skip else without_skipping(model)
    cells, step, n_samples = field.occupancy, field.sample_length, 0
    for rays in rays_of_some(cameras, chunk):
        n_samples += sum(len(march_cells(field, rays[i : i + chunk], cells, step, near)[1]) for i in range(0, len(rays), chunk))
    return n_samples / (len(cameras) * cameras.height * cameras.width)


def row_picture(n_vertices: int, bits: int, height: int = 0) -> Float[Tensor, "Y X"]:
    """Return the rows that a horizontal layer of vertices reads, in [0, 1]: a ramp where they are stored, noise where hashed.

    Args:
        n_vertices: of the level along an axis.
        bits: entries of a level at most, as a power of two.
        height: which layer.
    """
    n = max(n_vertices, 5)
    levels = hash_levels(1, n - 1, n - 1, bits)
    plane = torch.cartesian_prod(torch.arange(n), torch.arange(n), torch.tensor([height]))
    return (hash_rows(plane, levels, 0).float() / levels.n_rows).view(n, n).T.flip(0)
