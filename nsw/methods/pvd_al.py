"""Progressive Volume Distillation with Active Learning (Fang et al., IJCV 2026): a student asks more about what it gets wrong.

Three levels on top of `nsw.methods.pvd`, each of which can be switched on alone: poses, rays and points. Written from the paper,
with the official code's constants, but in another form where that has faults: an error is booked on the pose that it was made at,
a hard ray leaves the pool when it is asked again and comes back only if it is still hard, and pool rays take the place of random
ones instead of coming on top, so that every variant asks the same number of rays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nsw.cameras import Rays
from nsw.kernels.masked_adam import MaskedAdam
from nsw.kernels.packed import counts_of
from nsw.kernels.packed_rays import packed_weights
from nsw.methods import instant_ngp as ngp
from nsw.methods import pvd
from nsw.methods.pvd_al_pool import Diary, RayPool, hardest, renew_poses
from nsw.methods.pvd_students import factor_term
from nsw.methods.pvd_teacher import Plan, Teacher
from nsw.models.field import Field
from nsw.renderers.volume import sum_on_rays


@dataclass(frozen=True)
class Levels:
    """Which levels of active learning are on, and how strongly.

    Attributes:
        pose, ray, point: the three levels.
        shuffled: the control: random rays take the way through the pool in the place of hard ones.
        paired: errors of poses are read in the order of the poses; False is the fault of the official code, see `renew_poses`.
        hard: share of poses and rays that count as hard, and of a batch that comes from the pool.
        kept: share of a ray's samples that the point level keeps, those of the largest weights.
        opacity: rays less opaque keep no sample at all.
        capacity: of the ray pool, in batches.
        epoch: steps after which hard poses take the place of others.
    """

    pose: bool = False
    ray: bool = False
    point: bool = False
    shuffled: bool = False
    paired: bool = True
    hard: float = 0.1
    kept: float = 0.3
    opacity: float = 0.5
    capacity: int = 2
    epoch: int = 24


def important(
    weights: Float[Tensor, "K"],
    ray_indices: Int[Tensor, "K"],
    marched: Int[Tensor, "R"],
    kept: float = 0.3,
    opacity: float = 0.5,
) -> Bool[Tensor, "K"]:
    r"""Return which samples are among the largest weights of their ray, $\lceil 0.3\,n \rceil$ of its n; none of a ray in the air.

    Args:
        marched: n of each ray. Dark samples are gone from the K; they count, being what the level is there to leave out.

    >>> important(torch.tensor([0.1, 0.7, 0.1, 0.2]), torch.tensor([0, 0, 0, 1]), torch.tensor([3, 1])).tolist()
    [False, True, False, False]
    """
    by_weight = weights.argsort(descending=True, stable=True)
    order = by_weight[ray_indices[by_weight].argsort(stable=True)]  # ray after ray, the heaviest sample first
    count = counts_of(ray_indices, len(marched))
    rank = torch.empty_like(ray_indices)
    rank[order] = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[ray_indices[order]]
    solid = weights.new_zeros(len(marched)).index_add(0, ray_indices, weights) >= opacity
    return (rank < (kept * marched).ceil()[ray_indices]) & solid[ray_indices]


def losses(
    student: Field,
    teacher: Teacher,
    samples: pvd.Samples,
    truth: pvd.Reading,
    plan: Plan,
    levels: Levels,
    generator: torch.Generator,
) -> tuple[dict[str, Float[Tensor, ""]], Float[Tensor, "R"], Bool[Tensor, "K"]]:
    r"""Return the terms of the last stage, each ray's error, and the samples that the point terms saw.

    $$L = \lVert\hat C_s - \hat C_t\rVert + \lambda_\sigma\lVert s_s[\Omega] - s_t[\Omega]\rVert + \lambda_c\lVert c_s[\Omega] -
    c_t[\Omega]\rVert, \qquad e_r = \lVert\hat C_s - \hat C_t\rVert_1$$

    With the point level, Omega holds the samples that are important to the teacher or to the student; without it, all. Means are
    over all samples, as the paper's norms do not divide by the size of Omega either.
    """
    n, index = len(samples.rays), samples.ray_indices
    ours = pvd.read(student, samples.points, samples.rays, index)
    behind = torch.rand(n, 3, generator=generator, device=samples.t.device)
    weighed = [packed_weights(r.log_density.exp() * teacher.step, index, n) for r in (ours, truth)]
    pictures = [
        sum_on_rays(w, left, r.rgb, samples.t, index, behind)[0] for (w, left), r in zip(weighed, (ours, truth), strict=True)
    ]
    omega = torch.ones_like(index, dtype=torch.bool)
    if levels.point:
        student_s, teacher_s = (important(w.detach(), index, samples.marched, levels.kept, levels.opacity) for w, _ in weighed)
        omega = student_s | teacher_s
    clipped = [pvd.clip_through(r.log_density + math.log(teacher.step), *plan.clip) for r in (ours, truth)]
    terms = {"picture": pvd.loss_rms(*pictures)}
    if len(index) and (omega.is_cuda or bool(omega.any())):  # of none both are constant; a GPU is not waited for to know
        terms["density"] = plan.density * pvd.loss_rms(*(s * omega for s in clipped))
        terms["colour"] = plan.colour * pvd.loss_rms(*(r.rgb * omega[:, None] for r in (ours, truth)))
    return terms, (pictures[0] - pictures[1]).detach().abs().sum(-1), omega


class ActiveLearner:
    """A student with the pools of what it gets wrong.

    Attributes:
        pool: hard rays. errors, counts: [C], sums over the rays of each pose in this epoch.
        cameras: the poses of the start, to which all return after an epoch.
        last: of the newest step, {"errors", "from_pool", "omega", "marched"}.
        diary: what was hard after each epoch, and the numbers that `watch` returned of the student then.
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: MaskedAdam,
        teacher: Teacher,
        plan: Plan,
        levels: Levels,
        n_rays: int,
        seed: int = 0,
        watch: Callable[[nn.Module], Tensor] = lambda student: torch.zeros(0),
    ):
        self.student, self.optimizer, self.teacher, self.plan, self.levels = student, optimizer, teacher, plan, levels
        self.n_rays, self.cameras, device = n_rays, teacher.cameras, teacher.aabb.device
        self.pool, self.watch = RayPool(levels.capacity * n_rays, device), watch
        self.errors, self.counts = torch.zeros(2, len(teacher.cameras), device=device)
        self.generator, self.poses = torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed)
        self.last: dict[str, Tensor] = {}
        self.diary = Diary(plan.n_steps, levels.epoch, len(self.pool.born), len(self.cameras), len(watch(student)), device)

    def note(self, k: int) -> None:
        """Write what is hard after k steps into the diary; of turned poses nothing."""
        mean = torch.where(self._own() & (self.counts > 0), self.errors / self.counts, torch.nan)
        self.diary.write(k, self.pool, mean, self.watch(self.student))

    def terms(self, k: int) -> dict[str, Tensor]:
        """Draw the rays of a step, return the terms of its loss, and book its errors."""
        if k % self.levels.epoch == 0:
            self.note(k)
            if self.levels.pose and k:
                self._renew()
            self.errors, self.counts = torch.zeros(2, len(self.errors), device=self.errors.device)
        n_old = round(self.levels.hard * self.n_rays) if self.levels.ray and self.pool.full else 0
        rays, pose = pvd.random_rays(self.teacher.cameras, self.n_rays - n_old, self.generator)
        slots, old = self.pool.draw(n_old, self.generator)
        rays = Rays(*(torch.cat([getattr(r, x) for r in (rays, old)]) for x in ("origins", "directions", "z_per_t")))
        samples, truth, _ = pvd.ask(self.teacher, rays, self.plan, self.generator)
        terms, errors, omega = losses(self.student, self.teacher, samples, truth, self.plan, self.levels, self.generator)
        terms |= factor_term(self.student, self.plan)
        self.errors.index_add_(0, pose, errors[: len(pose)])
        self.counts.index_add_(0, pose, torch.ones_like(pose, dtype=self.counts.dtype))
        if self.levels.ray:
            self._collect(rays, errors, slots, k)
        from_pool = torch.arange(len(rays), device=errors.device) >= len(pose)
        self.last = {"errors": errors, "from_pool": from_pool, "omega": omega, "marched": samples.marched}
        return terms

    def _collect(self, rays: Rays, errors: Tensor, slots: Tensor, k: int) -> None:
        """Put the hardest rays of a batch, drawn ones among them, into the slots that were drawn, or that are free still."""
        chosen = hardest(errors, self.levels.hard)
        if self.levels.shuffled:
            chosen = torch.randperm(len(errors), generator=self.generator, device=errors.device)[: len(chosen)]
        slots = slots if len(slots) else self.pool.free(len(chosen))
        self.pool.put(slots, rays[chosen[: len(slots)]], k)

    def _own(self) -> Bool[Tensor, "C"]:  # which poses are those of the start
        return (self.teacher.cameras.cam_from_world == self.cameras.cam_from_world).flatten(1).all(1)

    def _renew(self) -> None:
        mean = self._own() * self.errors / self.counts.clamp_min(1)  # a turned pose's errors say nothing of the one it stands for
        cameras, _ = renew_poses(self.cameras, mean, self.levels.hard, self.poses, self.levels.paired)
        self.teacher = replace(self.teacher, cameras=cameras)

    def step(self, k: int) -> dict[str, Tensor]:
        """Take optimiser step k."""
        ngp.set_rate(self.optimizer, k / self.plan.n_steps, self.plan.warmup, self.plan.last_rate)
        terms = self.terms(k)
        sum(terms.values()).backward()
        self.optimizer.step()
        return terms

    def state_dict(self) -> dict:
        pool = {"rays": self.pool.rays, "born": self.pool.born}
        booked = {"errors": self.errors, "counts": self.counts, "poses": self.teacher.cameras.cam_from_world}
        random = {"rays": self.generator.get_state(), "poses": self.poses.get_state()}
        trained = {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
        return trained | {"pool": pool, "booked": booked, "random": random, "diary": self.diary.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restore student, optimiser, pools, poses and random numbers: a run goes on as if it had not stopped."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        device, booked = self.errors.device, {name: value.clone() for name, value in state["booked"].items()}
        self.pool.rays, self.pool.born = (state["pool"][name].to(device).clone() for name in ("rays", "born"))
        self.errors, self.counts = booked["errors"].to(device), booked["counts"].to(device)
        cameras = replace(self.teacher.cameras, cam_from_world=booked["poses"].to(device))
        self.teacher = replace(self.teacher, cameras=cameras)
        self.diary.load_state_dict(state["diary"])
        self.generator.set_state(state["random"]["rays"].cpu())
        self.poses.set_state(state["random"]["poses"].cpu())
