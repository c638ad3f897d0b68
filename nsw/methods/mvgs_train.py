"""The training of MVGS: stages of growing pictures with fewer and fewer views, and density control that listens to views.

Du, Wang, Yu, arXiv 2410.02103, sections 3.1 to 3.4; the geometry is in `mvgs.py`. With one stage of one view and both
additions off, this is 3DGS step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nsw.cameras import Cameras
from nsw.losses import loss_photometric
from nsw.methods import gaussian_splatting as gs
from nsw.methods import mvgs
from nsw.methods.density_control import DensityControl, Refined, choose_growth
from nsw.models.gaussians import Gaussians
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Scene


@dataclass(frozen=True)
class Stage:
    """Some steps at one picture size: `n_views` pictures of `scene` a step, density control once every `every` steps."""

    scene: Scene
    n_views: int
    n_steps: int

    def views(
        self, step: int, seed: int, device: torch.device | str
    ) -> tuple[Cameras, Float[Tensor, "M H W 3"], Float[Tensor, "3"]]:
        """Return M cameras, their pictures and the background of a step of this stage; a random one where there is alpha."""
        return gs.training_view(self.scene, step, seed, device=device, n_views=self.n_views)


def pyramid(scene: Scene, sizes: Sequence[int], n_views: Sequence[int], n_steps: Sequence[int]) -> list[Stage]:
    """Return one stage for each picture width, with intrinsics to match (cross-intrinsic guidance, section 3.2).

    Pictures are not enlarged: where a width is above that of the scene, the stage has the scene as it is.
    """
    full = scene.cameras.width
    return [Stage(scene.resized(min(size, full)), m, n) for size, m, n in zip(sizes, n_views, n_steps, strict=True) if n]


def stage_at(step: int, stages: Sequence[Stage]) -> tuple[Stage, int]:
    """Return the stage of a step and the step's number within it: counters start again in each."""
    for stage in stages[:-1]:
        if step < stage.n_steps:
            return stage, step
        step -= stage.n_steps
    return stages[-1], step


def rendered(step: int, stages: Sequence[Stage]) -> int:
    """Return how many views were rendered before a step.

    >>> rendered(12, [Stage(None, 4, 10), Stage(None, 1, 50)])
    42
    """
    return sum(_views(step, stages))


def megapixels(step: int, stages: Sequence[Stage]) -> float:
    """Return how many million pixels were rendered before a step: a small picture costs less than a large one."""
    sizes = (stage.scene.cameras.width * stage.scene.cameras.height for stage in stages)
    return sum(size * views for size, views in zip(sizes, _views(step, stages), strict=True)) / 1e6


def cost(step: int, stages: Sequence[Stage]) -> dict[str, float]:
    """Return all that was spent before a step: "steps", "rendered views" and "megapixels"."""
    return {"steps": step, "rendered views": rendered(step, stages), "megapixels": megapixels(step, stages)}


def _views(step: int, stages: Sequence[Stage]) -> list[int]:
    """Return the rendered views of each stage before a step."""
    views = []
    for stage in stages:
        views.append(stage.n_views * min(step, stage.n_steps))
        step = max(step - stage.n_steps, 0)
    return views


class MultiView(gs.Training):
    """Gaussians trained on several views a step.

    Args:
        gaussians, seed: as in `gaussian_splatting.Training`.
        stages: what is shown and for how long; learning rates and growth start again with each.
        control: density control for a stage as long as 30,000 steps; each stage gets it shortened.
        window: height and width of an error window, in shares of the picture; None clones by gradient alone.
        guard: which boxes of crossing rays count, a `Guard` or a function like it; None takes them all.
        tau: spread of a step's cameras above which the growth threshold is halved; infinity never halves it.
        growth: fields of `DensityControl` to set after the shortening, for example `every`.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        stages: Sequence[Stage],
        control: DensityControl,
        window: tuple[float, float] | None = (1 / 12, 1 / 12),
        guard: Callable | None = mvgs.Guard(),  # noqa: B008 (frozen)
        tau: float = 1.0,
        seed: int = 0,
        **growth,
    ):
        scene = stages[-1].scene
        super().__init__(gaussians, scene.scale, stages[-1].n_steps, control=control, seed=seed, choose=self._choose)
        self.stages, self.window, self.guard, self.tau = list(stages), window, guard, tau
        self.centre, self.base, self.growth = scene.aabb.mean(0), control, growth
        self.boxes, self.beta = torch.zeros(0, 2, 3), control.grow_gradient

    @property
    def total(self) -> int:
        """Steps of all stages together."""
        return sum(stage.n_steps for stage in self.stages)

    @property
    def cost(self) -> dict[str, float]:
        """What all stages together cost."""
        return cost(self.total, self.stages)

    def step(self, step: int, meta: dict, cameras: Cameras, errors: Float[Tensor, "M H W"]) -> Refined | None:
        """Take one step after `backward` of the SUM of the views' losses.

        Args:
            step: counted from 0 through all stages.
            meta: the rasterizer's, of all M views at once: statistics are of all, not of the last as in the official code.
            cameras, errors: of this step; the worst windows are looked for in them when density control is due. An error is NaN
                where a mask leaves its pixel out.
        """
        stage, local = stage_at(step, self.stages)
        self.n_steps, self.rates = stage.n_steps, gs.LearningRates.for_budget(stage.n_steps)
        self.control = self.base.for_budget(stage.n_steps, **self.growth)
        if self.control.due(local):
            device = errors.device
            self.beta = mvgs.growth_threshold(self.base.grow_gradient, mvgs.spread(cameras, self.centre.to(device)), self.tau)
            self.boxes = torch.zeros(0, 2, 3, device=device)
            if self.window is not None and len(cameras) > 1:
                corners, _ = mvgs.worst_windows(errors, *window_pixels(self.window, cameras))
                self.boxes = mvgs.crossing_boxes(cameras, corners, self.scene_scale, self.guard)
        # gsplat multiplies by the number of cameras because its trainers average over them; a sum needs no such factor
        return super().step(local, meta | {"n_cameras": 1})

    def _choose(self, params, rows, control: DensityControl, scene_scale: float):
        """Grow by the step's threshold; splats inside a crossing box are cloned too, whatever their size and gradient."""
        to_clone, to_split = choose_growth(params, rows, replace(control, grow_gradient=self.beta), scene_scale)
        extra = mvgs.inside(params["means"].detach(), self.boxes) & ~to_clone
        room = control.max_splats - len(extra) - int(to_clone.sum()) - int(to_split.sum())
        if control.max_splats and int(extra.sum()) > room:  # the most pulled ones first, as for the others
            gradient = torch.where(extra, rows["grad2d"], -1.0)
            strongest = gradient.argsort(descending=True, stable=True)[: max(room, 0)]
            extra = torch.zeros_like(extra).index_fill_(0, strongest, True)
        return to_clone | extra, to_split


def window_pixels(window: tuple[float, float], cameras: Cameras) -> tuple[int, int]:
    """Return rows and columns of a window given in shares of the picture, at least two pixels each."""
    return max(2, round(window[0] * cameras.height)), max(2, round(window[1] * cameras.width))


def fit(
    training: MultiView, steps: Iterable[int], seed: int = 0, look: Callable[[int], None] | None = None, every: int = 0
) -> MultiView:
    """Train as the notebook's loop does it, without watching; `look(step)` is called before every `every`-th step."""
    splats, top = training.gaussians, training.gaussians.settings.sh_degree
    for step in steps:
        if look and step % every == 0:
            look(step)
        stage, local = stage_at(step, training.stages)
        cameras, targets, background = stage.views(local, seed, splats.means.device)
        degree = gs.sh_degree_at(step, training.total, top)
        render = render_view(splats, cameras, background=background, sh_degree=degree, depth=False)
        loss = len(cameras) * loss_photometric(render.rgb, targets)
        loss.backward()
        training.step(step, render.extras["meta"], cameras, (render.rgb.detach() - targets).abs().mean(-1))
    return training
