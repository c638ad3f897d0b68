r"""CityGaussianV2: efficient and geometrically accurate reconstruction for large scenes (Liu et al., ICLR 2025).

A city does not fit into one process, and discs trained block by block explode in number and stay blurred. Cures: estimated depth
steers the start, only the gradient of SSIM decides where discs are added, and needles are never added to. Here stands what
changes in one training; blocks are in `citygaussian_v2_blocks.py`, trimming and the file in `citygaussian_v2_press.py`.
Discs and their terms are those of `gaussian_splatting_2d.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nsw.losses import loss_l1, loss_ssim
from nsw.methods import gaussian_splatting as gs
from nsw.methods import gaussian_splatting_2d as gs2d
from nsw.methods.citygaussian_v2_depth import loss_depth
from nsw.methods.citygaussian_v2_press import scores_of, weakest
from nsw.methods.density_control import DensityControl, Refined, choose_growth, prune
from nsw.models.gaussians import Seen
from nsw.models.surfels import Surfels
from nsw.renderers.render import Render
from nsw.renderers.surfels import render_view
from nsw.scenes.scene import Scene


@dataclass(frozen=True)
class Recipe:
    """What CityGaussianV2 changes in the training of discs; the defaults are the released coarse stage's, for 30,000 steps.

    Attributes:
        normal, normal_from: weight of the normal consistency, and the step from which it acts. Distortion has weight 0.
        depth, depth_fall: weight of the depth term at the start, and the factor that is left of it at the end.
        depth_l1: weight of L1 of inverse depths beside that of their SSIM; the released configurations have 0.
        median: the surface is where half the light is left, as in the released configurations. False takes the expected depth,
            whose gradient reaches all discs of a ray: short runs need that.
        decomposed: let the gradient of SSIM alone decide where discs are added; False adds by the whole gradient.
        omega: share of the whole gradient's mean length to which that of SSIM is lifted; 0 leaves it alone, as the released
            configurations do.
        least_ratio: discs thinner than this are neither cloned nor split; 0 switches the filter off.
        trim: share of discs that each trimming removes, the least important ones; 0 never trims.
        trim_from, trim_every: trim at every `trim_every`-th step from `trim_from` until density control ends.
        best_views: K, how many views vote on a disc's importance.
        all_bands: use all harmonics from the first step; False switches them on band by band.
    """

    normal: float = 0.0125
    normal_from: int = 7_000
    depth: float = 0.5
    depth_fall: float = 0.005
    depth_l1: float = 0.0
    median: bool = True
    decomposed: bool = True
    omega: float = 0.9
    least_ratio: float = 0.01
    trim: float = 0.0
    trim_from: int = 1_000
    trim_every: int = 500
    best_views: int = 5
    all_bands: bool = False

    @classmethod
    def plain(cls, n_steps: int) -> Recipe:
        """Return the recipe that leaves everything out: 2DGS with a quarter of its normal weight and no distortion."""
        return cls(normal_from=round(7 / 30 * n_steps), depth=0.0, decomposed=False, least_ratio=0.0)

    @classmethod
    def coarse(cls, n_steps: int, **changes) -> Recipe:
        """Return the recipe of the coarse stage, shortened in proportion to n_steps of 30,000."""
        return cls(normal_from=round(7 / 30 * n_steps), **changes)

    @classmethod
    def fine(cls, n_steps: int, **changes) -> Recipe:
        """Return the recipe of fine-tuning a block: normals from the start, depth to the end, trimming."""
        trims = dict(trim=0.1, trim_from=round(n_steps / 30), trim_every=max(round(n_steps / 60), 50))
        return cls(**(dict(normal_from=0, depth_fall=0.05, all_bands=True) | trims | changes))

    def depth_weight(self, step: int, n_steps: int) -> float:
        r"""Return $\alpha(t) = \alpha_0 f^{\,t/T}$.

        >>> [f"{Recipe().depth_weight(step, 30_000):.4f}" for step in (0, 15_000, 30_000)]
        ['0.5000', '0.0354', '0.0025']
        """
        return self.depth * self.depth_fall ** (step / max(n_steps, 1))

    def loss_depth(self, render: Render, inverse: Float[Tensor, "C H W"]) -> Float[Tensor, ""]:
        """Return the depth term of a render, without its weight."""
        return loss_depth(render.extras["median"] if self.median else render.depth, inverse, l1=self.depth_l1)


def fine_rates(n_steps: int) -> gs.LearningRates:
    """Return the step sizes of fine-tuning: places move at 40 %, sizes at 80 % of the coarse stage's rates."""
    rates = gs.LearningRates.for_budget(max(n_steps, 1))
    return replace(rates, means=0.4 * rates.means, scales=0.8 * rates.scales)


def pull_of(stored: Float[Tensor, "*n 2"], whole: Float[Tensor, "*n 2"], seen: Bool[Tensor, "*n"], omega: float) -> Tensor:
    r"""Return the gradient that density control listens to, as long as the whole gradient is on average.

    $$\nabla_{densify} = \max\!\Big(\omega\,\frac{\overline{\|\nabla L\|}}{\overline{\|\nabla L_{SSIM}\|}},\ 1\Big)\,
    \nabla L_{SSIM}$$  (Liu et al. 2025, means over the visible discs)
    """
    length, full = (g[seen].norm(dim=-1).mean() for g in (stored, whole))
    return stored * (omega * full / length.clamp_min(1e-20)).clamp_min(1.0)


def pull_of_ssim(loss: Float[Tensor, ""], meta: Mapping) -> Float[Tensor, "*n 2"]:
    """Return the gradient of one term, SSIM's, in the discs' places on the picture; parameters get none of it.

    It is asked for before the whole loss is differentiated, and costs one more way back through the rasterizer.
    """
    return torch.autograd.grad(loss, meta["gradient_2dgs"], retain_graph=True)[0]


def steered(meta: Mapping, stored: Float[Tensor, "*n 2"], omega: float, n_trained: int | None = None) -> dict:
    """Return what density control needs of `meta`, with the pull of SSIM in place of that of the whole loss (`pull_of`).

    Args:
        n_trained: discs, the first ones, whose lengths are compared: frozen ones pull at nothing. None is all.
    """
    whole, seen = meta["gradient_2dgs"].grad, (meta["radii"] > 0).all(-1)
    if n_trained is not None:
        seen[..., n_trained:] = False
    steering = torch.zeros_like(whole)
    steering.grad = pull_of(stored, whole, seen, omega)
    return {name: meta[name] for name in ("radii", "width", "height", "n_cameras")} | {"gradient_2dgs": steering}


def axis_ratio(surfels: Surfels) -> Float[Tensor, "N"]:
    """Return the shorter of a disc's two axes over the longer one; the third scale is no axis."""
    return ratio_of(surfels.scales.detach())


def ratio_of(scales: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
    r"""Return $\min(s_u, s_v) / \max(s_u, s_v)$ from raw scales, which are logarithms.

    >>> ratio_of(torch.tensor([[0.0, -4.6052, -14.0]]))
    tensor([0.0100])
    """
    return torch.exp(-(scales[:, 0] - scales[:, 1]).abs())


def round_enough(least_ratio: float):
    """Return a rule for growth that clones and splits no disc whose axis ratio is `least_ratio` or less (the elongation filter)."""

    def choose(params, rows, control: DensityControl, scene_scale: float):
        needle = ratio_of(params["scales"].detach()) <= least_ratio
        return choose_growth(params, rows | {"grad2d": torch.where(needle, 0.0, rows["grad2d"])}, control, scene_scale)

    return choose


class Training(gs2d.Training):
    """Discs trained by a `Recipe`: the training of 2DGS with decomposed densification, the filter, and trimming.

    Args:
        scene: whose training views vote when discs are trimmed; the scene's scale is taken from it too.
        recipe: what is on.
        scale: scene extent, where it is not that of `scene`: a block's own views span less than the whole scene's.
        Others as in `gaussian_splatting.Training`.
    """

    def __init__(self, surfels: Surfels, scene: Scene, n_steps: int, recipe: Recipe, scale: float | None = None, **options):
        choose = round_enough(recipe.least_ratio) if recipe.least_ratio else None
        super().__init__(surfels, scene.scale if scale is None else scale, n_steps, choose=choose, **options)
        self.recipe, self.cameras = recipe, scene.views("train").to(surfels.means.device)

    @property
    def shown(self) -> Surfels | Seen:
        """What stands in the picture of a step."""
        return self.gaussians

    @property
    def n_trained(self) -> int | None:
        """How many of those discs, the first ones, are trained; None is all."""
        return None

    def step(self, step: int, meta: Mapping) -> Refined | None:
        """Take one step of Adam and of density control, then trim when that is due."""
        refined = super().step(step, meta)
        if self.trim_due(step):
            self.trim(self.recipe.trim)
        return refined

    def trim_due(self, step: int) -> bool:
        """Say whether discs are trimmed after this step."""
        recipe, stop = self.recipe, self.control.stop if self.control else self.n_steps
        return recipe.trim > 0 and recipe.trim_from <= step < stop and (step - recipe.trim_from) % recipe.trim_every == 0

    def trim(self, share: float) -> None:
        """Remove this share of the discs, the least important ones; see `citygaussian_v2_press.scores_of`."""
        doomed = weakest(scores_of(self.gaussians, self.cameras, self.recipe.best_views), share)
        prune(self.gaussians.params, self.optimizers, self.rows, doomed)


def terms_of(
    render: Render, target: Float[Tensor, "C H W 3"], inverse: Float[Tensor, "C H W"] | None, step: int, training: Training
) -> dict[str, Tensor]:
    r"""Return the weighted terms of a step: $0.8 L_1 + 0.2 L_{SSIM} + \lambda_n L_n + \alpha(t) L_{depth}$ (Liu et al. 2025)."""
    recipe = training.recipe
    terms = {"l1": 0.8 * loss_l1(render.rgb, target), "ssim": 0.2 * loss_ssim(render.rgb, target)}
    if recipe.normal and step >= recipe.normal_from:
        terms["normal"] = recipe.normal * gs2d.loss_normal(render)
    if recipe.depth and inverse is not None:
        terms["depth"] = recipe.depth_weight(step, training.n_steps) * recipe.loss_depth(render, inverse)
    return terms


def fit(
    training: Training, scene: Scene, steps: Iterable[int], inverse: Float[Tensor, "F H W"] | None = None, seed: int = 0
) -> Training:
    """Train as the notebook's loop does it, without watching.

    Args:
        inverse: aligned inverse depth of every frame of the scene; None trains without the depth term.
    """
    recipe, control = training.recipe, training.control
    for step in steps:
        render, target, guess = drawn(training, scene, step, inverse, seed)
        terms, meta = terms_of(render, target, guess, step, training), render.extras["meta"]
        steer = recipe.decomposed and control is not None and step < control.stop
        stored = pull_of_ssim(terms["ssim"], meta) if steer else None
        sum(terms.values()).backward()
        training.step(step, steered(meta, stored, recipe.omega, training.n_trained) if steer else meta)
    return training


def drawn(
    training: Training, scene: Scene, step: int, inverse: Float[Tensor, "F H W"] | None, seed: int
) -> tuple[Render, Float[Tensor, "1 H W 3"], Float[Tensor, "1 H W"] | None]:
    """Return what a step sees: the render of its view, the picture, and the estimated inverse depth."""
    surfels = training.shown
    camera, target, behind = gs.training_view(scene, step, seed, device=surfels.means.device)
    top = surfels.settings.sh_degree
    degree = top if training.recipe.all_bands else gs.sh_degree_at(step, training.n_steps, top)
    recipe, guided = training.recipe, inverse is not None and training.recipe.depth > 0
    needed = (recipe.normal > 0 and step >= recipe.normal_from) or (guided and not recipe.median)
    render = render_view(surfels, camera, background=behind, sh_degree=degree, depth=needed, n_trained=training.n_trained)
    if not guided:
        return render, target, None
    frames = scene.splits["train"]
    return render, target, inverse[frames[gs.frames_at(step, len(frames), seed)]].to(target)
