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


def _surfels(scene, generator: torch.Generator) -> None:
    from nsw.kernels import rasterization_2dgs
    from nsw.models.gaussians import Gaussians

    splats, view = Gaussians.random(scene.aabb, 100, generator, sh_degree=1), scene.views("test")[0]
    shape = [splats.means, splats.quats, splats.activated_scales, splats.activated_opacities, splats.sh]
    where = [view.cam_from_world, view.Ks, view.width, view.height]
    rgb, *_ = rasterization_2dgs(*shape, *where, sh_degree=1, render_mode="RGB+ED")
    rgb.sum().backward()


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

    box = tuple(scene.aabb.flatten().tolist())
    sizes = dict(depth=1, width=8, skip=0, levels_position=2, levels_direction=1, n_samples=4, n_fine=4)
    fit_nerf(CoarseFineSettings(box=box, **sizes), scene, 2, generator, n_rays=16)


KINDS: dict[str, Callable] = {
    "splats": _splats,
    "surfels": _surfels,
    "dense grids": _dense_grid,
    "voxel harmonics": _plenoxels,
    "hash grids": _hash_grid,
    "factored grids": _factored_grid,
    "networks": _networks,
}


def warm() -> Iterator[tuple[str, float]]:
    """Yield (kind, seconds) as the kernels of each kind of model are compiled and kept for the next process."""
    from nsw import scenes

    scene = scenes.load("toybox", size=SIZE)
    for kind, train in KINDS.items():
        began = time.perf_counter()
        train(scene, torch.Generator().manual_seed(0))
        yield kind, time.perf_counter() - began
