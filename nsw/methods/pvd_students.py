"""Who can be a student: for each architecture a function that builds it around a teacher and returns its training.

All have the same arguments, `(teacher, plan, generator, **sizes)`, so that `nsw.methods.pvd.convert` takes any of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nsw.kernels.masked_adam import MaskedAdam
from nsw.losses import loss_mse, loss_size
from nsw.methods import dvgo, pvd, tensorf
from nsw.methods import instant_ngp as ngp
from nsw.methods.pvd import Learner
from nsw.methods.pvd_splats import picture_losses, picture_rays
from nsw.methods.pvd_teacher import Plan, Teacher
from nsw.models.dense_grid import DenseGrid, DenseGridSettings
from nsw.models.factors import VMSizes
from nsw.models.hash_grid import HashGrid, HashGridSettings
from nsw.models.headed_vm_grid import HeadedVMGrid, HeadedVMGridSettings
from nsw.models.trunk_mlp import TrunkMLP, TrunkMLPSettings
from nsw.models.vm_grid import VMGrid


def hash_grid(
    teacher: Teacher, plan: Plan, generator: torch.Generator, lr: float = 0.05, lr_network: float = 0.01, **sizes
) -> Learner:
    """Return a hash grid (Instant-NGP) that learns from a teacher."""
    model = HashGrid(HashGridSettings(_box(teacher), n_cells=plan.n_cells, step=teacher.step, **sizes)).to(teacher.aabb.device)
    share_cells(model, teacher)
    return learner(model, ngp.make_optimizer(model, lr, lr_network), teacher, plan, generator)


def mlp(teacher: Teacher, plan: Plan, generator: torch.Generator, lr: float = 3e-3, **sizes) -> Learner:
    """Return a network (NeRF) that learns from a teacher; its heads have the sizes of the teacher's, where that has any."""
    model = new_mlp(teacher, plan, **sizes)
    share_cells(model, teacher)
    return learner(model, network_optimizer(model, lr), teacher, plan, generator)


def new_mlp(teacher: Teacher, plan: Plan, **sizes) -> TrunkMLP:
    """Return an untrained network over a teacher's box, with heads of the same sizes; a trunk that two cores train in a minute.

    The paper's trunk is `depth=8, width=256, skip=4`.
    """
    sizes = {**dict(depth=6, width=128, skip=3), **sizes}
    if isinstance(teacher.model, HashGrid | TrunkMLP):
        first, theirs = teacher.model.density_net[0].weight, teacher.model.settings
        heads = dict(n_head=first.shape[1], head_width=first.shape[0], n_geometry=theirs.n_geometry, shift=theirs.shift)
        sizes = {**heads, **sizes}
    else:
        sizes = {**dict(zip(("n_geometry", "head_width"), colour_head(teacher.model), strict=False)), **sizes}
    return TrunkMLP(TrunkMLPSettings(_box(teacher), n_cells=plan.n_cells, step=teacher.step, **sizes)).to(teacher.aabb.device)


def colour_head(field: nn.Module) -> tuple[int, ...]:
    """Return how many features a field's colour head reads and how wide its hidden layers are; nothing without a `colour_net`."""
    first = next(iter(getattr(field, "colour_net", ())), None)
    return (pvd.n_features(field), first.out_features) if isinstance(first, nn.Linear) else ()


def share_cells(model: HashGrid | TrunkMLP | VMGrid, teacher: Teacher) -> None:
    """Give a student its teacher's occupancy grid."""
    model.occupancy.binaries, model.occupancy.occs = teacher.cells.binaries.clone(), teacher.cells.occs.clone()


def network_optimizer(model: nn.Module, lr: float) -> MaskedAdam:
    """Return plain Adam for all parameters, in the form that `set_rate` takes."""
    optimizer = MaskedAdam([dict(params=list(model.parameters()), lr=lr, skip_zero=False)], eps=ngp.EPSILON)
    for group in optimizer.param_groups:
        group["start"] = group["lr"]
    return optimizer


def dense(
    teacher: Teacher, plan: Plan, generator: torch.Generator, lr: float = 0.5, n_voxels: int = 64**3, sh_degree: int = 2, **sizes
) -> Learner:
    """Return a dense voxel grid with harmonics (Plenoxels' contents, all voxels stored) that learns from a teacher."""
    settings = DenseGridSettings(_box(teacher), n_voxels=n_voxels, alpha_init=1e-2, sh_degree=sh_degree, **sizes)
    model = DenseGrid(settings).to(teacher.aabb.device)
    model.occupied = teacher.cells.binaries[0].clone()
    return learner(model, dvgo.make_optimizer(model, lr), teacher, plan, generator)


def vm(
    teacher: Teacher,
    plan: Plan,
    generator: torch.Generator,
    lr: float = 0.05,
    lr_network: float = 5e-3,
    n_voxels: int = 64**3,
    n_density: int = 8,
    n_colour: int = 16,
    **sizes,
) -> Learner:
    """Return a vector-matrix grid (TensoRF) that learns from a teacher."""
    model = new_vm(teacher, plan, n_voxels, n_density, n_colour, **sizes)
    share_cells(model, teacher)
    return learner(model, tensorf.make_optimizer(model, lr, lr_network), teacher, plan, generator)


def new_vm(teacher: Teacher, plan: Plan, n_voxels: int = 64**3, n_density: int = 8, n_colour: int = 16, **sizes) -> HeadedVMGrid:
    """Return an untrained vector-matrix grid over a teacher's box; its colour head has the sizes of the teacher's, if any."""
    sizes = {**dict(zip(("n_features", "mlp_width"), colour_head(teacher.model), strict=False)), **sizes}
    settings = HeadedVMGridSettings(_box(teacher), n_voxels, VMSizes(n_density, n_colour), n_cells=plan.n_cells, **sizes)
    return HeadedVMGrid(settings).to(teacher.aabb.device)


def factor_term(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return what the last stage asks of a student besides likeness: small factors of density, of a vector-matrix grid only."""
    grid = isinstance(model, VMGrid) and plan.factors > 0
    return {"factors": plan.factors * loss_size(model.factors.density)} if grid else {}


def _box(teacher: Teacher) -> tuple[float, ...]:
    return tuple(teacher.aabb.flatten().tolist())


def learner(model: nn.Module, optimizer: MaskedAdam, teacher: Teacher, plan: Plan, generator: torch.Generator) -> Learner:
    """Return the training of a field: by the levels of its teacher's volume, or by the pictures and depths of splats."""
    if plan.inherit and teacher.pictures is None:
        pvd.inherit(model, teacher, plan, generator)
    feature = teacher.pictures is None and pvd.comparable(model, teacher.model)
    state = {"n_rays": ngp.first_batch(max(plan.n_samples // 16, 64), teacher.aabb, teacher.step)}
    seen = None if teacher.pictures is None else picture_rays(teacher)

    def step(k: int) -> dict[str, Tensor]:
        ngp.set_rate(optimizer, k / plan.n_steps, plan.warmup, plan.last_rate)
        if seen is None:
            samples, truth, n_marched = pvd.draw(teacher, state["n_rays"], plan, generator)
            stage = pvd.stage_of(k, plan, feature)
            terms = pvd.losses(model, teacher, samples, truth, stage, plan, generator)
            if stage == 3:
                terms |= factor_term(model, plan)
        else:
            terms, n_marched = picture_losses(model, teacher, seen.draw(state["n_rays"], generator), generator)
        sum(terms.values()).backward()
        optimizer.step()
        state["n_rays"] = ngp.next_batch(state["n_rays"], n_marched, plan.n_samples, 1 << 14)
        return terms

    return Learner(model, plan.n_steps, step)


def photographed(
    model: HashGrid | TrunkMLP,
    optimizer: MaskedAdam,
    pixels: ngp.Pixels,
    plan: Plan,
    generator: torch.Generator,
    near: float,
    update_every: int = 16,
    decay: float = 0.6,
) -> Learner:
    """Return the training of a field on photographs, the way Instant-NGP does it: what a distilled student is compared with."""
    state = {"n_rays": ngp.first_batch(max(plan.n_samples // 32, 64), model.aabb, model.sample_length), "step": 0}

    def step(k: int) -> dict[str, Tensor]:
        ngp.update_occupancy(model, state["step"], update_every, decay)
        ngp.set_rate(optimizer, k / plan.n_steps, plan.warmup, plan.last_rate)
        batch = pixels.draw(state["n_rays"], generator)
        behind = ngp.random_backgrounds(batch, generator)
        out = ngp.render(model, batch.rays, near, behind, generator)
        loss = loss_mse(out.rgb, batch.over(behind))
        loss.backward()
        optimizer.step()
        state["n_rays"] = ngp.next_batch(state["n_rays"], out.n_marched, plan.n_samples, 1 << 14)
        state["step"] += 1
        return {"picture": loss}

    return Learner(model, plan.n_steps, step)
