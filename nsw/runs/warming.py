"""`nsw doctor --warm`: compile what the notebooks call, by training each kind of model for two steps on a tiny scene."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

SIZE = 24  # width of the pictures


def _splats(scene, generator: torch.Generator) -> None:
    from nsw.methods import gaussian_splatting as gs
    from nsw.methods.density_control import DensityControl
    from nsw.models.gaussians import Gaussians
    from nsw.renderers import render_view

    splats = Gaussians.from_points(gs.starting_points(scene, 100), sh_degree=3)
    training = gs.Training(splats, scene.scale, 2, control=DensityControl())
    gs.fit(training, scene, range(2))
    view = scene.views("test")[0]
    render_view(splats, view).rgb.sum().backward()  # with depth, which training leaves out
    with torch.no_grad():
        render_view(splats, view)
        render_view(splats, view, depth=False)


def _features(scene, generator: torch.Generator) -> None:
    from nsw.methods.feature_3dgs import composited
    from nsw.models.gaussians import Gaussians

    splats, view = Gaussians.random(scene.aabb, 100, generator, sh_degree=0), scene.views("test")[0]
    for n_channels in (4, 16, 32):
        seen = composited(splats, view, torch.zeros(100, n_channels, requires_grad=True))
        seen.sum().backward()


def _surfels(scene, generator: torch.Generator) -> None:
    from nsw.methods import gaussian_splatting as gs
    from nsw.methods import gaussian_splatting_2d as gs2d
    from nsw.models.surfels import Surfels
    from nsw.renderers import render_view, tsdf

    surfels = Surfels.from_points(gs.starting_points(scene, 100), sh_degree=1, generator=generator)
    for terms in (gs2d.Regularisers(normal_from=0, distortion_from=0), gs2d.Regularisers(0.05, 0.0, 0), gs2d.Regularisers(0, 0)):
        gs2d.fit(gs2d.Training(surfels, scene.scale, 2, control=gs2d.density_control(2)), scene, range(2), terms)
    with torch.no_grad():
        seen = render_view(surfels, scene.views("test")[0])
        render_view(surfels, scene.views("test")[0], ray_depth=False)
        tsdf.fuse(seen.depth, scene.views("test")[0], scene.aabb, scene.scale / 4)


def _dense_grid(scene, generator: torch.Generator) -> None:
    from nsw.methods import dvgo
    from nsw.methods import dvgo_stages as stages

    bank, small = stages.ray_bank(scene), stages.Stage(n_voxels=10**3, n_steps=2, n_rays=64, alpha_init=0.1)
    coarse = stages.coarse_stage(scene, bank, small, generator)
    fine_stage = stages.Stage(n_voxels=12**3, n_steps=2, n_rays=64, n_features=12, refresh=1)
    fine = stages.new_fine(coarse, fine_stage)
    stages.fit(fine, bank, fine_stage, generator, scene.near)
    dvgo.render_view(fine, scene.views("test")[0], scene.near)


def _plenoxels(scene, generator: torch.Generator) -> None:
    from nsw.methods import plenoxels_fit

    plenoxels_fit.warm_up(scene, plenoxels_fit.Recipe())


def _hash_grid(scene, generator: torch.Generator) -> None:
    from nsw.methods import instant_ngp, instant_ngp_fit
    from nsw.renderers import render_view

    sizes = dict(n_levels=2, log2_entries=8, n_max=24, width=16, n_cells=8)
    models = [instant_ngp_fit.new_model(scene, 16, n_features=n, **sizes) for n in (1, 2, 4)]  # kernels are compiled for each
    for model in [*models, instant_ngp_fit.single_level(models[1])]:
        pixels = instant_ngp.training_pixels(scene, model.aabb)
        instant_ngp_fit.fit(model, pixels, instant_ngp_fit.Plan(2, 128, update_every=1), generator, scene.near)
    render_view(models[0], scene.views("test")[0])


def _factored_grid(scene, generator: torch.Generator) -> None:
    from nsw.methods import instant_ngp, tensorf, tensorf_fit

    model = tensorf_fit.new_model(scene)
    pixels, plan = instant_ngp.training_pixels(scene, model.aabb), tensorf.Plan(2, 128, grow_at=(), mask_at=())
    tensorf_fit.fit(model, pixels, plan, generator, scene.near)


def _networks(scene, generator: torch.Generator) -> None:
    from nsw.methods.plenoxels_fit import fit_nerf
    from nsw.models.mlp import CoarseFineSettings

    sizes = dict(depth=1, width=8, skip=0, levels_position=2, levels_direction=1, n_samples=4, n_fine=4)
    fit_nerf(CoarseFineSettings(box=scene.box, **sizes), scene, 2, generator, n_rays=16)


def _lookups(scene, generator: torch.Generator) -> None:
    """Lookups at every number of channels that a notebook has, and their gradients with respect to the points: normals."""
    from nsw.kernels import hash_encode, hash_levels
    from nsw.kernels.cp_lookup import cp_lookup
    from nsw.kernels.grid_lookup import grid_lookup
    from nsw.kernels.vm_lookup import vm_lookup

    levels, box = hash_levels(2, 4, 8, 8), torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    points = torch.rand(16, 3, generator=generator).requires_grad_()
    found = [hash_encode(torch.rand(levels.n_rows, 2, requires_grad=True), points, levels)]
    found += [grid_lookup(torch.rand(4, 4, 4, 1, requires_grad=True), points, box)]
    for n in (3, 4, 6, 8, 12, 27):
        found += [grid_lookup(torch.rand(4, 4, 4, n, requires_grad=True), points.detach(), box)]
    for rank in (1, 2, 4, 8, 16):  # the widths of vectors; any other rank is made of these
        lines = [torch.rand(4, rank, requires_grad=rank >= 4) for _ in range(3)]
        planes = [torch.rand(4, 4, rank, requires_grad=rank >= 4) for _ in range(3)]
        at = points if rank == 4 else points.detach()
        found += [vm_lookup(planes, lines, at, box, summed=True), cp_lookup(lines, at, box, summed=True)]
    sum(values.sum() for values in found).backward()


def _graphs(scene, generator: torch.Generator) -> None:
    """Messages between neighbours, with as many features as a notebook has."""
    from nsw.models.neighbour_graph import graph_of, message, strongest_difference

    graph = graph_of(torch.rand(32, 3, generator=generator), 4)
    features = [torch.rand(32, n, generator=generator).requires_grad_() for n in (16, 32)]
    sum(message(strongest_difference(f, graph), graph).sum() for f in features).backward()


def _calls(scene, generator: torch.Generator) -> None:
    """Calls of gsplat and nerfacc that no notebook makes."""
    from nsw import kernels as k

    rays = torch.repeat_interleave(torch.arange(4), 5)
    info, values = k.pack_info(rays, 4), torch.rand(20, generator=generator).requires_grad_()
    sums = [k.inclusive_sum(values, info), k.exclusive_prod(values, info)]
    weights, _ = k.render_weight_from_alpha(values, packed_info=info)
    sums += [k.accumulate_along_rays(weights, torch.rand(20, 3, requires_grad=True), rays, 4)]
    sum(x.sum() for x in sums).backward()
    edges = k.RayIntervals(torch.linspace(0, 1, 6).repeat(4, 1))
    k.importance_sampling(edges, edges.vals, 4)
    k.searchsorted(edges, edges)
    box, cells = torch.tensor([[-1.0, -1, -1, 1, 1, 1]]), torch.ones(1, 4, 4, 4, dtype=torch.bool)
    k.traverse_grids(torch.tensor([[-2.0, 0, 0]]), torch.tensor([[1.0, 0, 0]]), cells, box, step_size=0.1)
    means2d, conics = torch.full((1, 1, 2), 8.0), torch.tensor([[[0.1, 0.0, 0.1]]])
    lists = torch.zeros(1, 1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    k.rasterize_to_pixels(means2d, conics, torch.ones(1, 1, 3), torch.ones(1, 1), 16, 16, 16, *lists)
    rows = torch.nn.Parameter(torch.zeros(4, 3))
    rows.grad = torch.ones(4, 3)
    k.SelectiveAdam([rows], eps=1e-8, betas=(0.9, 0.999)).step(torch.ones(4, dtype=torch.bool))


KINDS: dict[str, Callable] = {
    "splats": _splats,
    "features on splats": _features,
    "surfels": _surfels,
    "dense grids": _dense_grid,
    "voxel harmonics": _plenoxels,
    "hash grids": _hash_grid,
    "factored grids": _factored_grid,
    "networks": _networks,
    "lookups": _lookups,
    "graphs of neighbours": _graphs,
    "other calls of gsplat and nerfacc": _calls,
}


def warm() -> Iterator[tuple[str, float]]:
    """Yield (kind, seconds) as the kernels of each kind of model are compiled and kept for the next process."""
    from nsw import scenes

    scene, threads = scenes.load("toybox", size=SIZE), torch.get_num_threads()
    for kind, train in KINDS.items():
        began = time.perf_counter()
        torch.set_num_threads(2)  # one alone skips what divides the work, many find too little of it in a tiny scene
        try:
            train(scene, torch.Generator().manual_seed(0))
        finally:
            torch.set_num_threads(threads)
        yield kind, time.perf_counter() - began
