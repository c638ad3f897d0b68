"""3D Gaussian Splatting for real-time radiance field rendering (Kerbl, Kopanas, Leimkuehler, Drettakis, SIGGRAPH 2023).

What the paper adds to a differentiable splat renderer: the start, the learning rates, the order of the views, the
loss, the harmonics switched on band by band; density control has its own file, `density_control.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nsw.cameras import Cameras
from nsw.losses import loss_l1, loss_photometric
from nsw.methods.budgets import shortness
from nsw.methods.density_control import DensityControl, Refined, accumulate, new_rows, refine, reset_opacity
from nsw.metrics import ticks
from nsw.models.gaussians import Gaussians
from nsw.renderers.render import backdrop
from nsw.renderers.splats import render_view
from nsw.scenes.scene import Points, Scene


@dataclass(frozen=True)
class LearningRates:
    """Adam's step sizes per raw parameter; the defaults are the paper's for 30,000 steps.

    Attributes:
        means: in scene extents; decays exponentially to means * means_decay at the last step.
        decay: the same for all others; 1 keeps them constant, as the paper does.
    """

    means: float = 1.6e-4
    scales: float = 5e-3
    quats: float = 1e-3
    opacities: float = 5e-2
    sh0: float = 2.5e-3
    shN: float = 2.5e-3 / 20
    means_decay: float = 0.01
    decay: float = 1.0

    @classmethod
    def for_budget(cls, n_steps: int) -> LearningRates:
        """Return rates for a run of n_steps: the paper's at 30,000, larger and decaying for a short one.

        With fewer steps each must go further: rates grow like a root of 30,000 / n_steps, up to the factors that still
        train stably, and all of them decay, so that the run ends settled. Measured, not from the paper.
        """
        short = shortness(n_steps)
        return cls(
            means=1.6e-4 * 6**short,
            scales=5e-3 * 6**short,
            quats=1e-3 * 6**short,
            sh0=2.5e-3 * 8**short,
            shN=2.5e-3 / 20 * 20**short,
            decay=0.3**short,
        )

    def at(self, step: int, n_steps: int, scene_scale: float) -> dict[str, float]:
        """Return the rate of each parameter at a step, r(step) = r(0) decay^(step / n_steps).

        >>> f"{LearningRates().at(30_000, 30_000, scene_scale=1.0)['means']:.1e}"
        '1.6e-06'
        """
        share = step / max(n_steps, 1)
        rates = {name: getattr(self, name) * self.decay**share for name in ("scales", "quats", "opacities", "sh0", "shN")}
        return {"means": self.means * scene_scale * self.means_decay**share, **rates}


def make_optimizers(gaussians: Gaussians) -> dict[str, torch.optim.Adam]:
    """Return one Adam per raw parameter, as gsplat's strategies expect them; `Training` sets the rates each step."""
    return {name: torch.optim.Adam([p], lr=0.0, eps=1e-15, fused=True) for name, p in gaussians.params.items()}


def generator_at(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its arguments, so that a resumed run draws the same numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 8 + stream)


def frames_at(step: int, n_frames: int, seed: int = 0, n_views: int = 1) -> Int[Tensor, "M"]:
    """Return the M frames of n_frames that a step shows: from a shuffled stack, renewed when fewer than M are left.

    >>> sorted(int(frames_at(step, 5)) for step in range(5, 10))
    [0, 1, 2, 3, 4]
    """
    n_views = min(n_views, n_frames)
    epoch, place = divmod(step, n_frames // n_views)
    return torch.randperm(n_frames, generator=generator_at(seed, epoch, 1))[place * n_views : (place + 1) * n_views]


def training_view(
    scene: Scene, step: int, seed: int = 0, background: float | None = None, device: torch.device | str = "cpu", n_views: int = 1
) -> tuple[Cameras, Float[Tensor, "M H W 3"], Float[Tensor, "3"]]:
    """Return the cameras, pictures and background of a step; one camera unless n_views says more.

    Without a given background, pictures with alpha get a random one (splats learn to paint a constant one), others the cameras'
    own. A pixel that the scene's masks leave out is NaN, and no loss of `nsw.losses` counts it.
    """
    picked = scene.splits["train"][frames_at(step, len(scene.splits["train"]), seed, n_views)]
    cameras = scene.cameras[picked].to(device)
    colour = backdrop(cameras.background if background is None else background, cameras.Ks).expand(3)
    if background is None and scene.has_alpha:
        colour = torch.rand(3, generator=generator_at(seed, step, 2)).to(device)
    return cameras, scene.targets(picked, colour, device), colour


def sh_degree_at(step: int, n_steps: int, top: int = 3) -> int:
    """Return the bands of harmonics in use: one more every 1,000 of 30,000 steps.

    >>> [sh_degree_at(step, 30_000) for step in (0, 999, 1000, 2500, 29_999)]
    [0, 0, 1, 2, 3]
    """
    return min(top, step * 30 // n_steps)


def starting_points(scene: Scene, n: int, seed: int = 0) -> Points:
    """Return n coloured points to start from: the scene's own, else seen surface points, else random ones in its box.

    Surface points are back-projections of known depth in the training views, a stand-in for structure from motion.
    """
    generator = generator_at(seed, 0, 3)
    if scene.points is not None:
        picked = torch.randperm(len(scene.points), generator=generator)[:n]
        return Points(scene.points.xyz[picked], scene.points.rgb[picked])
    if scene.depth is None:
        unit = torch.rand(n, 6, generator=generator)
        return Points(scene.aabb[0] + unit[:, :3] * (scene.aabb[1] - scene.aabb[0]), 0.35 + 0.3 * unit[:, 3:])
    frames = scene.splits["train"]
    depth = scene.depth[frames]
    hits = ((depth > 0) & scene.usable(frames)).nonzero()
    view, row, column = hits[torch.randperm(len(hits), generator=generator)[:n]].unbind(-1)
    cameras = scene.cameras[frames]
    pixel = torch.stack([column + 0.5, row + 0.5, torch.ones(len(view))], dim=-1)
    in_camera = (torch.linalg.inv(cameras.Ks[view]) @ pixel[..., None])[..., 0] * depth[view, row, column][:, None]
    pose = cameras.world_from_cam[view]
    xyz = (pose[:, :3, :3] @ in_camera[..., None])[..., 0] + pose[:, :3, 3]
    return Points(xyz, scene.pixels(frames)[view, row, column])


class Training:
    """Gaussians being trained: the splats, one Adam per parameter, and the statistics of density control.

    `state_dict` holds all of it, so a checkpoint restores a run whose number of splats has changed since it began.

    Args:
        gaussians: the model; its parameters are replaced as it grows.
        scene_scale: scene extent, `Scene.scale`.
        n_steps: length of the run; learning rates decay over it.
        rates: step sizes; None takes those for n_steps.
        control: density control; None leaves the number of splats alone.
        choose: another rule for what grows, instead of `density_control.choose_growth`.
        seed: of the random places of split children.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        scene_scale: float,
        n_steps: int,
        rates: LearningRates | None = None,
        control: DensityControl | None = None,
        seed: int = 0,
        choose: Callable | None = None,
    ):
        self.choose = choose
        self.gaussians, self.scene_scale, self.n_steps, self.seed = gaussians, scene_scale, n_steps, seed
        self.rates = rates or LearningRates.for_budget(n_steps)
        self.control = control
        self.optimizers = make_optimizers(gaussians)
        self.rows = new_rows(len(gaussians), gaussians.means.device)
        self.seconds = 0.0  # of the clock between steps; the first one is not counted
        self._ended: tuple[int, float] | None = None

    def step(self, step: int, meta: dict) -> Refined | None:
        """Take one Adam step after `backward`, then refine when density control is due.

        Args:
            step: counted from 0.
            meta: the rasterizer's dictionary of the picture that was differentiated.

        Returns:
            What density control did, or None when it was not due.
        """
        now = ticks()
        if self._ended is not None and self._ended[0] == step - 1:
            self.seconds += now - self._ended[1]
        self._ended = (step, now)
        for name, rate in self.rates.at(step, self.n_steps, self.scene_scale).items():
            optimizer = self.optimizers[name]
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            self.gaussians.params[name].grad = None
        if self.control is None or step >= self.control.stop:
            return None
        accumulate(self.rows, meta, self.control.absgrad)
        refined = None
        if self.control.due(step):
            generator = torch.Generator(self.gaussians.means.device).manual_seed(generator_at(self.seed, step, 4).initial_seed())
            params = self.gaussians.params
            rest = (step, self.control, self.scene_scale, generator, self.choose)
            refined = refine(params, self.optimizers, self.rows, *rest)
        if self.control.reset_due(step):
            reset_opacity(self.gaussians.params, self.optimizers, 2 * self.control.prune_opacity)
        return refined

    def state_dict(self) -> dict:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {
            "gaussians": self.gaussians.state_dict(),
            "optimizers": optimizers,
            "rows": dict(self.rows),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore splats, moments and statistics; the number of splats is taken from what is loaded."""
        self.gaussians.load_state_dict(state["gaussians"])
        self.optimizers = make_optimizers(self.gaussians)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        device = self.gaussians.means.device
        self.rows = {name: value.to(device).clone() for name, value in state["rows"].items()}
        self.seconds = float(state["seconds"])


def fit(
    training: Training, scene: Scene, steps: Iterable[int], seed: int = 0, ssim: float = 0.2, penalty: Callable | None = None,
    background: float | None = None, draw: Callable = render_view,
) -> Training:  # fmt: skip
    """Train with the paper's loss, L = (1 - ssim) L1 + ssim (1 - SSIM), as the notebook's loop does it, without watching.

    Args:
        steps: step numbers, for example `range(n)` or `run.steps(n, name=...)`.
        ssim: weight of the structural term; penalty(step), when given, is added to the loss.
        background: grey behind every picture; None as in `training_view`.
        draw: another renderer, called as `render_view` of `nsw.renderers.splats` is.
    """
    splats, n_steps = training.gaussians, training.n_steps
    absgrad = training.control is not None and training.control.absgrad
    for step in steps:
        camera, target, behind = training_view(scene, step, seed, background, device=splats.means.device)
        options = dict(sh_degree=sh_degree_at(step, n_steps, splats.settings.sh_degree), absgrad=absgrad, depth=False)
        render = draw(splats, camera, background=behind, **options)
        loss = loss_photometric(render.rgb, target, ssim) if ssim else loss_l1(render.rgb, target)
        (loss + penalty(step) if penalty else loss).backward()
        training.step(step, render.extras["meta"])
    return training
