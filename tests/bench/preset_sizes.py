"""What the benches on lego train: the methods of the notebooks at the sizes that a preset's column of their own tables has."""

from __future__ import annotations

import ast
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import torch
from bench_gpu_presets import settings_table

from nsw.methods import dvgo_stages, gaussian_splatting, instant_ngp_fit, plenoxels_fit, tensorf, tensorf_fit
from nsw.methods.density_control import DensityControl
from nsw.methods.gaussian_splatting import Training
from nsw.models.factors import VMSizes
from nsw.models.gaussians import Gaussians
from nsw.models.hash_grid import HashGrid
from nsw.models.vm_grid import VMGrid
from nsw.runs.notebooks import find_notebook
from nsw.runs.settings import column
from nsw.scenes import Scene

LENGTHS = ("steps", "n_steps", "coarse_steps", "fine_steps")  # settings that say how long a notebook trains


def settings(number: str, preset: str, length: float = 1.0) -> SimpleNamespace:
    """Return a preset's column of a notebook's table of settings.

    Args:
        length: the steps of training are multiplied by it; the schedules are shares of them.
    """
    for cell in nbformat.read(find_notebook(number), 4).cells:
        if cell.cell_type == "code" and "run.settings(" in cell.source:
            rows = {row.arg: ast.unparse(row.value) for row in settings_table(ast.parse(cell.source))}
            own = {name: column(name, eval(text, {"tensorf": tensorf}), preset) for name, text in rows.items()}
            return SimpleNamespace(**own | {name: round(length * own[name]) for name in LENGTHS if name in own})
    raise SystemExit(f"Notebook {number} has no table of settings.")


def splats_training(scene: Scene, s: SimpleNamespace, sh_degree: int, device: torch.device | str = "cpu") -> Training:
    """Return the untrained splats of notebook 03 with their optimiser and density control."""
    points = gaussian_splatting.starting_points(scene, s.n_start, 0)
    growth = dict(max_splats=s.max_splats, every=s.refine_every, grow_gradient=s.grow_gradient)
    control = DensityControl().for_budget(s.n_steps, **growth)
    start = Gaussians.from_points(points, sh_degree=sh_degree).to(device)
    return Training(start, scene.scale, s.n_steps, control=control)


def dvgo_both(s: SimpleNamespace) -> tuple[dvgo_stages.Stage, dvgo_stages.Stage]:
    """Return the coarse and the fine stage of notebook 02."""
    fine = dvgo_stages.Stage(
        s.fine**3, s.fine_steps, s.fine_rays, alpha_init=1e-2, lr=s.fine_lr, lr_network=s.network_lr, per_point=0.01, entropy=0.001,
        threshold=1e-4, grow=tuple(s.fine_steps * k // 20 for k in (1, 2, 4, 6)), refresh=s.fine_steps // 10,
        n_features=s.features, mlp_width=s.width,
    )  # fmt: skip
    return dvgo_stages.Stage(s.coarse**3, s.coarse_steps, s.coarse_rays, lr=s.coarse_lr), fine


def plenoxels_recipe(s: SimpleNamespace) -> plenoxels_fit.Recipe:
    """Return the recipe of notebook 04."""
    names = ("sizes", "n_steps", "n_rays", "sh_degree", "lr_density", "lr_colour", "tv_density", "tv_colour", "tv_share", "dilate")
    return plenoxels_fit.Recipe(**{name: getattr(s, name) for name in names})


def vm(scene: Scene, s: SimpleNamespace, device: torch.device | str = "cpu") -> tuple[VMGrid, tensorf.Plan]:
    """Return the untrained planes and lines of notebook 06, and how they are trained."""
    sizes = dict(n_voxels=s.start**3, n_features=s.features, mlp_width=s.width, n_frequencies=s.octaves, n_cells=s.cells)
    sizes |= dict(shift=s.shift, basis_start=s.basis_start, factors=VMSizes(s.rank_density, s.rank_colour))
    plan = replace(
        tensorf.Plan(), n_steps=s.steps, n_samples=s.samples, n_voxels=s.finest**3, lr=s.lr, lr_network=s.network_lr,
        momentum=s.momentum, last_rate=s.last_rate, grow_at=s.grow_at, l1=s.l1[0], l1_later=s.l1[1], threshold=s.threshold,
        opaque=s.opaque,
    )  # fmt: skip
    return tensorf_fit.new_model(scene, **sizes).to(device), plan


def hash_grid(scene: Scene, s: SimpleNamespace, device: torch.device | str = "cpu") -> tuple[HashGrid, instant_ngp_fit.Plan]:
    """Return the untrained hash grid of notebook 05, and how it is trained."""
    sizes = dict(n_levels=s.levels, n_features=2, log2_entries=s.entries_log2, n_max=s.finest, width=s.width, n_cells=s.cells)
    rates = (s.table_lr, s.network_lr, s.last_rate)
    plan = instant_ngp_fit.Plan(s.steps, s.samples, *rates, update_every=s.update_every, decay=s.decay)
    return instant_ngp_fit.new_model(scene, s.steps_across, **sizes).to(device), plan
